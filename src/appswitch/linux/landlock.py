"""Landlock (landlock(7)): TCP connect() denied to this process for good."""

from __future__ import annotations

import errno
import os
import struct

from appswitch.linux import features, libc

_CREATE_RULESET, _RESTRICT_SELF = 444, 446
_CREATE_RULESET_VERSION = 1
_ACCESS_NET_CONNECT_TCP = 1 << 1
_PR_SET_NO_NEW_PRIVS = 38
#: The ABI that has rules for TCP.
NETWORK = 4


def abi() -> int:
    """The version of Landlock that this kernel runs; 0 when it has none or has it switched off."""
    try:
        return libc.syscall(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            return 0
        raise


def deny_tcp_connect() -> bool:
    """Deny TCP connect() to this thread and all that it will start: EACCES, on whatever socket.

    bind() and listen() stay allowed, and so does connect() by other processes on copies of its sockets. A
    process without CAP_SYS_ADMIN in its user namespace gets NO_NEW_PRIVS (prctl(2)) for it. False, and
    nothing is changed, when the kernel cannot do it (ABI < 4, that is Linux < 6.7, or Landlock switched off).
    """
    if features.left_out(features.LANDLOCK) or abi() < NETWORK:
        return False
    # struct landlock_ruleset_attr as of ABI 4: handled_access_fs, handled_access_net.
    attributes = struct.pack("=QQ", 0, _ACCESS_NET_CONNECT_TCP)
    ruleset = libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        try:
            libc.syscall(_RESTRICT_SELF, ruleset, 0)
        except OSError as error:
            if error.errno != errno.EPERM:
                raise
            libc.call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            libc.syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return True
