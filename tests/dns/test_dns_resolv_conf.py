"""The host's resolv.conf, and what programs see in its place."""

import os
import socket
from pathlib import Path

import pytest

from appswitch.dns.resolv_conf import Followed, compose, parse, parse_server, write_over


def composed(host: str, hostname: str = "h1") -> list[str]:
    return compose(parse(host), "100.64.0.53", "appswitch", hostname).splitlines()


def test_our_resolver_alone_is_named() -> None:
    assert composed("nameserver 192.0.2.1\n") == ["nameserver 100.64.0.53", "search appswitch"]


def test_the_hosts_search_domains_and_options_stay() -> None:
    host = "domain old.example\nsearch a.example  b.example\noptions ndots:2 rotate\noptions timeout:1\n"
    assert composed(host, "h1.example.com") == [
        "nameserver 100.64.0.53",
        "search appswitch a.example b.example",
        "options ndots:2 rotate",
        "options timeout:1",
    ]


def test_the_last_of_domain_and_search_counts() -> None:
    assert "search appswitch c.example" in composed("search a.example\ndomain c.example x.example\n")


def test_without_either_the_hosts_own_domain_stays() -> None:
    assert "search appswitch example.com" in composed("", "h1.example.com")
    assert "search appswitch" in composed("", "h1")


def test_rubbish_is_left_out() -> None:
    assert composed("search\noptions\n\x00\nnameserver") == composed("")


def test_servers() -> None:
    text = """
# nameserver 192.0.2.9
; nameserver 192.0.2.9
search example.com
nameserver 192.0.2.1
 nameserver\t2001:db8::1  # second
nameserver
nameserver nonsense
nameserver 192.0.2.300
nameserver fe80::1%lo
nameserver 192.0.2.4
"""
    assert parse(text).servers == (  # three, as the C library
        (socket.AF_INET, ("192.0.2.1", 53)),
        (socket.AF_INET6, ("2001:db8::1", 53, 0, 0)),
        (socket.AF_INET6, ("fe80::1", 53, 0, 1)),
    )
    assert parse("").servers == ((socket.AF_INET, ("127.0.0.1", 53)),)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", (5, 2, False, False)),
        ("options timeout:1 attempts:3 rotate\noptions use-vc", (1, 3, True, True)),
        ("options timeout:1\noptions timeout:2", (2, 2, False, False)),
        ("options timeout:0 attempts:0", (1, 1, False, False)),
        ("options timeout:3600 attempts:3600", (30, 5, False, False)),
        ("options timeout: attempts:x timeout:-1", (5, 2, False, False)),
    ],
)
def test_options(options: str, expected: object) -> None:
    found = parse(options)
    assert (found.timeout, found.attempts, found.rotate, found.over_tcp) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", (socket.AF_INET, ("192.0.2.1", 53))),
        ("192.0.2.1:5353", (socket.AF_INET, ("192.0.2.1", 5353))),
        ("2001:db8::1", (socket.AF_INET6, ("2001:db8::1", 53, 0, 0))),
        ("[2001:db8::1]", (socket.AF_INET6, ("2001:db8::1", 53, 0, 0))),
        ("[2001:db8::1]:5353", (socket.AF_INET6, ("2001:db8::1", 5353, 0, 0))),
    ],
)
def test_parse_server(text: str, expected: object) -> None:
    assert parse_server(text) == expected


@pytest.mark.parametrize("text", ["", "dns.example.com", "192.0.2.1:x", "192.0.2.1:70000", "[::1", "1.2.3.4.5"])
def test_parse_server_refuses(text: str) -> None:
    with pytest.raises(ValueError):
        parse_server(text)


def test_a_file_is_followed_as_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    followed = Followed(str(path))

    def servers() -> list[str]:
        return [address[0] for _, address in followed.now().servers]

    assert servers() == ["127.0.0.1"]  # no file: resolv.conf(5)
    path.write_text("nameserver 127.9.9.9\n")
    assert servers() == ["127.9.9.9"]
    assert followed.now() is followed.now()
    path.write_text("# none\nnameserver 127.9.9.9\nnameserver 127.9.9.10\n")
    assert servers() == ["127.9.9.9", "127.9.9.10"]
    other = tmp_path / "other"
    other.write_text("nameserver 127.9.9.11\n")
    os.replace(other, path)  # as network managers do it
    assert servers() == ["127.9.9.11"]
    path.unlink()
    assert servers() == ["127.9.9.11"]


def test_the_file_that_programs_see_changes_in_place_and_in_one_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "resolv.conf"
    long, short = "search " + "long.example " * 20 + "\n", "search short.example\n"
    write_over(str(path), long)
    before = path.stat()
    writes: list[int] = []
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: writes.append(len(data)) or real(fd, data, at))
    monkeypatch.setattr(os, "ftruncate", None)  # a reader would see the end of the one text after the other
    for text in (short, short, long):
        write_over(str(path), text)
        assert path.read_text().rstrip("\n") + "\n" == text
    assert writes == [len(long), len(long)]  # what is there already is not written
    after = path.stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)  # the one that programs have bound
    assert after.st_mode & 0o777 == 0o644
