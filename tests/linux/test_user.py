"""Becoming another user: whom a text names, and what the environment becomes."""

import grp
import os
import pwd

import pytest

from appswitch.linux import user
from appswitch.linux.user import User

#: Users and groups that every Debian has (base-passwd).
DAEMON = User(1, 1, [1], "daemon", "/usr/sbin", "/usr/sbin/nologin")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("daemon", DAEMON),
        ("1", DAEMON),
        ("daemon:tty", DAEMON._replace(gid=5, groups=[5])),
        ("1:5", DAEMON._replace(gid=5, groups=[5])),
        ("64321:tty", User(64321, 5, [])),
        ("64321:64322", User(64321, 64322, [])),
        ("4294967294:0", User(4294967294, 0, [])),
    ],
)
def test_users_are_named_or_numbered(text: str, found: User) -> None:
    assert user.find(text) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no-such-user", "no user 'no-such-user'"),
        ("", "no user ''"),
        (":tty", "no user ''"),
        ("-1", "no user '-1'"),
        ("4294967295:0", "no user '4294967295'"),
        ("99999999999999:0", "no user '99999999999999'"),
        ("٣:0", "no user"),
        ("a\udcff", "no user"),
        ("a\0b", "no user"),
        ("64321", "give it as 64321:GROUP"),
        ("64321:", "no group ''"),
        ("daemon:no-such-group", "no group 'no-such-group'"),
        ("daemon:4294967295", "no group '4294967295'"),
    ],
)
def test_what_names_nobody_is_told(text: str, words: str) -> None:
    with pytest.raises(LookupError) as error:
        user.find(text)
    assert words in error.value.args[0]
    assert "\n" not in error.value.args[0]


def test_a_users_other_groups_come_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, 7, 8] if name == "daemon" else [])
    assert user.find("daemon").groups == [1, 7, 8]
    assert user.find("daemon:tty").groups == [5, 7, 8]


def test_a_name_that_is_a_number_goes_before_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = pwd.struct_passwd(("1", "x", 4000, 4001, "", "/home/one", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwnam", {"1": entry}.__getitem__)
    monkeypatch.setattr(grp, "getgrnam", {}.__getitem__)
    assert user.find("1").uid == 4000


def test_the_environment_is_the_users() -> None:
    before = {b"HOME": b"/root", b"USER": b"root", b"XDG_RUNTIME_DIR": b"/run/user/0", b"LANG": b"C", b"SHELL": b"sh"}
    assert user.environment(DAEMON, before) == {
        b"LANG": b"C",
        b"HOME": b"/usr/sbin",
        b"SHELL": b"/usr/sbin/nologin",
        b"USER": b"daemon",
        b"LOGNAME": b"daemon",
    }
    assert user.environment(User(64321, 5, []), before) == {b"LANG": b"C", b"HOME": b"/"}
