"""A network and a mount namespace of a process's own, within a user namespace for an ordinary user.

namespaces(7), user_namespaces(7), mount_namespaces(7).
"""

from __future__ import annotations

import errno
import os
import sys

from appswitch.linux import features, libc

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 0x80000
_MOUNT_SETATTR, _AT_FDCWD, _MOUNT_ATTR_RDONLY = 442, -100, 0x1

# What each switches off, with the value that does, and what to do about it.
_USER_SWITCHES = (
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ("user.max_user_namespaces", "0", "10000"),
)
_LIMITS = ("user.max_user_namespaces", "user.max_net_namespaces", "user.max_mnt_namespaces")


class NamespaceError(OSError):
    """No namespaces could be made; `str` of it is one sentence that says why and what to do."""

    def __str__(self) -> str:
        return str(self.args[-1])


def enter(*, user: bool) -> None:
    """Move this process, which must have one thread only, into a network and a mount namespace of its own.

    There is no network in it. What it mounts nobody else sees, though it sees what the host mounts and
    unmounts. With `user`, a user namespace is made around them: there the process keeps its user and group
    id, no others exist, and it has every capability until it executes a program.
    NamespaceError when the system refuses.
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        if user and features.left_out(features.USER_NAMESPACES):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))  # as a kernel without CONFIG_USER_NS says
        libc.call("unshare", _CLONE_NEWNET | _CLONE_NEWNS | (_CLONE_NEWUSER if user else 0))
        if user:
            # setgroups(2) must be given up before an ordinary user may map a group: user_namespaces(7).
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/gid_map", f"{gid} {gid} 1")
            _write("/proc/self/uid_map", f"{uid} {uid} 1")
        # Not MS_PRIVATE: that would keep alive whatever the host unmounts later.
        libc.call("mount", b"none", b"/", None, _MS_REC | _MS_SLAVE, None)
    except OSError as error:
        names = [name for name, _, _ in _USER_SWITCHES] + list(_LIMITS)
        number = error.errno or 0
        raise NamespaceError(number, explain(number, user, {name: sysctl(name) for name in names})) from None


def cover(target: str, source: str) -> None:
    """Lay the file `source`, read-only, over `target` (symbolic links followed) in this mount namespace."""
    attributes = _MOUNT_ATTR_RDONLY.to_bytes(8, sys.byteorder) + bytes(24)  # struct mount_attr
    path = os.fsencode(target)  # both calls follow symbolic links
    libc.call("mount", os.fsencode(source), path, None, _MS_BIND, None)
    try:
        libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, path, 0, attributes, len(attributes))
    except OSError as error:
        if error.errno != errno.ENOSYS:  # Linux < 5.12: stays writable for who may write to source
            raise


def explain(number: int, user: bool, sysctls: dict[str, str]) -> str:
    """One sentence for the errno of a refused namespace, from the sysctls that can be the reason for it."""
    if not user:
        if number == errno.EPERM:
            return (
                "cannot make a network namespace: root lacks CAP_SYS_ADMIN here (a container?); "
                "give the container that capability or run as an ordinary user"
            )
        return f"cannot make a network namespace: {os.strerror(number)}{_limit(number, sysctls)}"
    if number in (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EUSERS):
        for name, off, on in _USER_SWITCHES:
            if sysctls.get(name) == off:
                return (
                    f"cannot make a user namespace: {name} is {off} on this system; "
                    f"have root run `sysctl -w {name}={on}`, or run appswitch as root"
                )
    if number == errno.EINVAL:
        return "cannot make a user namespace: this kernel has none (CONFIG_USER_NS); run appswitch as root"
    if number in (errno.EPERM, errno.EACCES):
        return (
            "cannot make a user namespace: this system refuses it (a chroot, a container's seccomp profile "
            "or a security module); allow unshare(CLONE_NEWUSER) there, or run appswitch as root"
        )
    return f"cannot make a user namespace: {os.strerror(number)}{_limit(number, sysctls)}"


def _limit(number: int, sysctls: dict[str, str]) -> str:
    if number not in (errno.ENOSPC, errno.EUSERS):
        return ""
    values = ", ".join(f"{name} = {sysctls[name]}" for name in _LIMITS if sysctls.get(name))
    return f"; a limit on namespaces is reached ({values}): have root raise it, or end some programs"


def sysctl(name: str) -> str:
    """Its value, empty when this kernel does not have it."""
    try:
        with open("/proc/sys/" + name.replace(".", "/")) as file:
            return file.read().strip()
    except OSError:
        return ""


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
