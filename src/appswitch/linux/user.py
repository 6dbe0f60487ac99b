"""Becoming another user, as su(1) and systemd's User= do (credentials(7)). Pure standard library."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Mapping
from typing import NamedTuple

from appswitch.linux import libc

_PR_SET_DUMPABLE = 4
_MOST = 2**32 - 2  # the next says "leave it" (setresuid(2))


class User(NamedTuple):
    """`groups`: the supplementary ones. `name`, `home`, `shell` are empty when passwd does not know the user."""

    uid: int
    gid: int
    groups: list[int]
    name: str = ""
    home: str = ""
    shell: str = ""


def find(text: str) -> User:
    """The user written as NAME or UID, with :GROUP or :GID to choose the group; LookupError, one sentence."""
    wanted, colon, group = text.partition(":")
    found = _passwd(wanted)
    if found is None and not _is_number(wanted):
        raise LookupError(f"there is no user {wanted!r}: give a name or number that `getent passwd` shows")
    gid = _gid(group) if colon else None
    if found is not None:
        gid = found.pw_gid if gid is None else gid
        groups = os.getgrouplist(found.pw_name, gid)
        return User(found.pw_uid, gid, groups, found.pw_name, found.pw_dir, found.pw_shell)
    if gid is None:
        raise LookupError(f"user {wanted} is in no passwd entry that would tell its group: give it as {wanted}:GROUP")
    return User(int(wanted), gid, [])


def become(user: User) -> None:
    """Give up root for good: supplementary groups, group, user. OSError when that is not allowed (CAP_SETUID)."""
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    # Else /proc/self stays root's until the next execve(2), and no user namespace can be furnished.
    libc.call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0)


def environment(user: User, before: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """The environment of a program of this user, made of root's: HOME, SHELL, USER and LOGNAME are the user's.

    Without a passwd entry HOME is / and the others are unset. XDG_RUNTIME_DIR, which none but root may use, is unset.
    """
    changed = {b"HOME": user.home or "/", b"SHELL": user.shell, b"USER": user.name, b"LOGNAME": user.name}
    kept = {key: value for key, value in before.items() if key not in changed and key != b"XDG_RUNTIME_DIR"}
    return kept | {key: os.fsencode(value) for key, value in changed.items() if value}


def _passwd(wanted: str) -> pwd.struct_passwd | None:
    """Its entry; a name goes before a number, as in chown(1)."""
    try:
        return pwd.getpwnam(wanted)
    except (KeyError, ValueError):  # ValueError: a zero byte
        pass
    try:
        return pwd.getpwuid(int(wanted)) if _is_number(wanted) else None
    except KeyError:
        return None


def _gid(wanted: str) -> int:
    try:
        return grp.getgrnam(wanted).gr_gid
    except (KeyError, ValueError):
        if _is_number(wanted):
            return int(wanted)
        raise LookupError(f"there is no group {wanted!r}: give a name or number that `getent group` shows") from None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= _MOST
