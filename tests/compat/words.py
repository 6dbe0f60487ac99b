"""The words of docs/compatibility.md."""

HEAD = """
# Programs that were tried

Written by `make compat`, which installs the programs from Debian, PyPI and npm and runs each case in four ways:

- **native**: without AppSwitch. Every name has a network namespace and an address on a bridge, as a container would.
- **one host**: under AppSwitch, as it comes. The table shows which transports the traced connections took.
- **one host, tcp**: with `--transport tcp`. It says nothing of UDP (`-`).
- **two hosts**: servers and clients under two switches of a cluster (network namespaces on a bridge).

A case passes when the client gets 1 MiB or more with the right digest, once, then over 100 connections one after the
other, and over 10 at once, unless its name says otherwise (over UDP: from so many sockets, by clients that ask for a
datagram at a time and repeat nothing, so that none may be lost); when nothing is left over, no log has a traceback and
the server, sent `SIGTERM`, ends with the same exit code as natively, and not noticeably later (last column:
native / one host / one host, tcp / two hosts). The switch belongs to root, and so do programs unless they refuse to.
"""

CANNOT = """
## What cannot work

Each fails at once, with an error that programs know from hosts that lack the thing:

ROWS

Clients in the kernel (NFS, CIFS, iSCSI, NBD) are not carried: no call of a program's makes their connections. An
ordinary user may not mount (`EPERM`). What root's mount meets was not tried: the kernel at hand has none of them
(`ENODEV`).
"""
