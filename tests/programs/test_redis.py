"""redis-server, redis-cli and redis-benchmark, by name."""

import csv
import hashlib
from pathlib import Path

import pytest

from support.needs import need
from support.switch import Switch


@pytest.fixture
def cache(switch: Switch) -> str:
    """The name of a redis server that keeps nothing on disk."""
    server = [need("redis-server"), "--save", "", "--appendonly", "no", "--protected-mode", "no"]
    switch.run(server, name="cache")
    switch.wait_service("cache", 6379)
    return "cache"


def test_redis_keeps_what_redis_cli_stores(switch: Switch, cache: str, site: Path, digest: str) -> None:
    cli = [need("redis-cli"), "-h", cache]
    with (site / "blob").open("rb") as blob:
        assert switch.check([*cli, "-x", "SET", "blob"], stdin=blob, status=0).stdout == "OK\n"
    reading = switch.run([*cli, "GET", "blob"])
    assert reading.wait() == 0
    assert hashlib.sha256(reading.output_bytes().removesuffix(b"\n")).hexdigest() == digest


def test_redis_is_told_virtual_addresses(switch: Switch, cache: str) -> None:
    [row] = [row for row in switch.services("cache", 6379) if ":" not in row["vip"]][:1]
    info = switch.check(
        [need("redis-cli"), "-h", cache, "CLIENT", "INFO"], ip="100.64.200.8", status=0
    ).stdout
    facts = dict(word.split("=", 1) for word in info.split())
    if switch.virtual:
        assert facts["laddr"] == f"{row['vip']}:6379"
        assert facts["addr"].startswith("100.64.200.8:")


def test_redis_benchmark_runs_through(switch: Switch, cache: str) -> None:
    command = [
        need("redis-benchmark"),
        "-h",
        cache,
        "-n",
        "2000",
        "-c",
        "20",
        "-d",
        "1000",
        "-t",
        "set,get",
        "--csv",
    ]
    result = switch.check(command, status=0)
    rows = list(csv.reader(result.stdout.splitlines()))
    assert [row[0] for row in rows[1:]] == ["SET", "GET"]
    assert all(float(row[1]) > 0 for row in rows[1:])
    processed = switch.check([need("redis-cli"), "-h", cache, "INFO", "commandstats"], status=0).stdout
    assert "cmdstat_set:calls=2000," in processed
    assert "cmdstat_get:calls=2000," in processed
