"""The table's codec and store."""

import dataclasses
import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appswitch.model.identity import Claim
from appswitch.model.service import Place, Service
from appswitch.table import codec, counters, poke
from appswitch.table.store import AT_ONCE, DENIALS_KEPT, Table

ADDRESS = st.binary(min_size=16, max_size=16)
TEXT = st.text(max_size=20)
SERVICES = st.builds(
    Service,
    vip=ADDRESS,
    port=st.integers(0, 65535),
    instance=st.integers(0, 2**64 - 1),
    program=st.integers(0, 2**32),
    name=st.none() | TEXT,
    tags=st.lists(st.tuples(TEXT, TEXT), max_size=3).map(tuple),
    bound=ADDRESS,
    dual=st.booleans(),
    listener=TEXT,
    real=st.tuples(TEXT, st.integers(0, 65535)),
    balance=TEXT,
    transport=TEXT,
    since=st.floats(allow_nan=False),
    uid=st.integers(0, 2**32),
    cookie=st.integers(0, 2**64 - 1),
    host=TEXT,
    epoch=st.binary(max_size=8),
)


@pytest.fixture
def table(tmp_path):
    table = Table(str(tmp_path / "table"))
    yield table
    table.close()


@given(SERVICES)
def test_rows_survive_their_bytes(row):
    assert codec.decode_service(codec.encode_service(row)) == row


@given(SERVICES)
def test_keys_of_one_service_begin_alike(row):
    assert codec.service_key(row).startswith(codec.service_prefix(row.vip, row.port, row.proto))


def row(vip=b"\1" * 16, port=80, instance=1, program=1):
    return Service(
        vip, port, instance, program, "web", (), bytes(16), True, "l", ("h", 1), "random", "auto", 1.0, 0, instance
    )


def test_lookup_finds_all_instances_of_one_service_and_no_others(table):
    rows = [row(instance=n) for n in (3, 1, 2)]
    for other in (*rows, row(port=81), row(vip=b"\2" * 16), row(port=79)):
        table.put_service(other)
    found, known = table.lookup(b"\1" * 16, 80)
    assert {r.instance for r in found} == {1, 2, 3}
    assert known
    assert table.lookup(b"\3" * 16, 80) == ([], False)
    assert {r.port for r in table.under(b"\1" * 16)} == {79, 80, 81}
    assert table.under(b"\3" * 16) == []


def test_the_version_moves_with_every_write_and_only_then(table):
    before = table.version()
    table.lookup(b"\1" * 16, 80)
    assert table.version() == before
    table.put_service(row())
    assert table.version() > before


def test_a_program_takes_its_rows_with_it(table):
    table.put_program(1, {"pid": 5})
    table.put_service(row(instance=1, program=1))
    table.put_service(row(instance=2, program=2))
    table.delete_program(1)
    assert [r.instance for r in table.services()] == [2]
    assert table.programs() == {}
    assert table.delete_services([row(instance=1), row(instance=2)]) == 1


def test_names_come_and_go_with_their_claims(table):
    vip = b"\1" * 16
    table.set_claims(vip, [Claim("a", vip, 1), Claim("b", vip, 1)])
    assert table.vip_of("a") == table.vip_of("b") == vip
    assert table.names_of(vip) == ["a", "b"]
    table.set_claims(vip, [Claim("b", vip, 1)])
    assert table.vip_of("a") is None
    table.set_claims(vip, [])
    assert table.names_of(vip) is None
    assert table.vip_of("b") is None
    assert table.vip_of("") is None
    assert table.vip_of("x" * 5000) is None


def test_only_the_last_denials_are_kept(table):
    for number in range(DENIALS_KEPT + 5):
        table.add_denial(
            client="c", program=1, tags=(("group", "1"),), service="s", destination="d", port=number, rule="r"
        )
    kept = table.denials()
    assert [d["port"] for d in kept] == list(range(5, DENIALS_KEPT + 5))
    assert kept[0]["tags"] == ["group=1"]


def test_another_process_sees_what_was_written(table, tmp_path):
    table.put_service(row())
    look = (
        "import sys; from appswitch.table.store import Table as T;"
        "print(len(list(T(sys.argv[1], readonly=True).services())))"
    )
    command = [sys.executable, "-c", look, str(tmp_path / "table")]
    seen = subprocess.run(command, capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "1"


def test_counters_are_kept_over_a_restart(tmp_path):
    path = str(tmp_path / "counters")
    counters.Counters(path).add("traps", 3)
    counters.Counters(path).add("traps")
    assert counters.read(path)["traps"] == 4
    assert set(counters.read(path)) == set(counters.MEANING)


def of(host, instance, **changes):
    return dataclasses.replace(row(instance=instance), host=host, listener="", cookie=0, **changes)


def test_lookup_gives_the_instances_of_all_hosts_this_one_first(table):
    table.replace_host_rows("b", [of("b", 1)])
    table.replace_host_rows("c", [of("c", 1, epoch=b"12345678")])
    table.put_service(row(instance=1))
    found, known = table.lookup(b"\1" * 16, 80)
    assert known
    assert found[0].host == ""
    assert not found[0].remote
    assert {(r.host, r.epoch) for r in found} == {("", b""), ("b", b""), ("c", b"12345678")}
    assert all(r.remote for r in found[1:])


def test_what_is_done_to_this_hosts_rows_leaves_those_of_others(table):
    other = of("b", 1, program=1)
    table.replace_host_rows("b", [other])
    table.put_program(1, {})
    table.put_service(row(instance=1, program=1))
    assert [r.host for r in table.services()] == [""]
    assert sorted(r.host for r in table.all_services()) == ["", "b"]
    table.delete_program(1)
    assert table.delete_services([other]) == 0
    assert list(table.all_services()) == [other]


def test_only_the_rows_of_the_named_host_change(table):
    table.put_service(row(instance=1))
    table.replace_host_rows("b", [of("b", n) for n in range(500)])
    table.replace_host_rows("c", [of("c", n) for n in range(3)])
    table.replace_host_rows("b", [of("b", n) for n in (3, 4, 1000)])
    found = {(r.host, r.instance) for r in table.all_services()}
    assert found == {("", 1), ("b", 3), ("b", 4), ("b", 1000), ("c", 0), ("c", 1), ("c", 2)}
    key = codec.service_key(of("b", 4))
    table.apply_host_changes("b", {key: None})
    assert len(table.host_keys("b")) == 2
    assert len(table.host_keys("")) == 1
    for host, changes in (
        ("c", {key: None}),
        ("c", {codec.service_key(of("c", 9)): of("b", 9)}),
        ("c", {codec.service_key(of("c", 9)): of("c", 8)}),
        ("", {codec.service_key(row(instance=1)): None}),
    ):
        with pytest.raises(ValueError):
            table.apply_host_changes(host, changes)
    assert len(list(table.all_services())) == 6


def test_thousands_of_rows_of_another_host_never_keep_a_writer_waiting_for_long(table):
    """Each transaction is of a bounded size: the version moves once for every few rows."""
    before = table.version()
    table.replace_host_rows("b", [of("b", n) for n in range(5 * AT_ONCE)])
    assert table.version() == before + 5


def claimed(host, count):
    vips = [(1 << 64 | n).to_bytes(16, "big") for n in range(count)]
    return {vip: [Claim(f"{host}{n}", vip, 1, host=host)] for n, vip in enumerate(vips)}


def test_this_hosts_rows_and_claims_are_found_among_many_of_others(table):
    table.replace_host_rows("b", [of("b", n) for n in range(500)])
    table.replace_host_rows("c", [of("c", n) for n in range(7)])
    table.apply_host_claims("b", claimed("b", 300))
    mine = [row(instance=n, program=n % 3) for n in range(9)]
    for one in mine:
        table.put_service(one)
    vips = [bytes([n]) * 16 for n in (7, 8)]
    for vip in vips:
        table.set_claims(vip, [Claim("mine", vip, 1)])
    assert {r.instance for r in table.services()} == set(range(9))
    assert {r.instance for r in table.services(2)} == {2, 5, 8}
    assert table.services(12) == []
    assert table.counts() == {"b": 500, "c": 7}
    assert table.hosts() == {"b", "c"}
    assert len(table.vips_of_host("b")) == 300
    assert table.vips_of_host("") == vips == list(table.claims_of_host(""))
    table.delete_services([mine[2], mine[3]])
    table.delete_program(1)
    table.set_claims(vips[0], [])
    assert {r.instance for r in table.services()} == {0, 6, 5, 8}
    assert table.vips_of_host("") == vips[1:]
    assert len(list(table.all_services())) == 511


def test_names_below_a_name(table):
    for number, name in enumerate(("web", "a.b", "x.y.z", "bb")):
        vip = bytes([number + 1]) * 16
        table.set_claims(vip, [Claim(name, vip, 1)])
    assert [name for name in ("web", "b", "z", "y.z", "a.b", "x.y.z", "eb", "", "y") if table.has_below(name)] == [
        "b",
        "z",
        "y.z",
    ]
    table.set_claims(b"\2" * 16, [])
    assert not table.has_below("b")
    assert not table.has_below("x" * 5000)


def test_writers_poke_the_router_and_do_without_it(table, tmp_path):
    table.put_service(row(instance=1))  # no router
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as router:
        router.bind(str(tmp_path / poke.NAME))
        router.setblocking(False)
        table.put_service(row(instance=2))
        key = codec.service_key(row(instance=2))
        assert poke.read(router.recv(65536)) == [key]
        table.delete_services([row(instance=2)])
        assert poke.read(router.recv(65536)) == [key]
        table.put_service(row(instance=3, program=7))
        assert poke.read(router.recv(65536)) == [codec.service_key(row(instance=3))]
        table.delete_program(7)
        assert poke.read(router.recv(65536)) == [codec.service_key(row(instance=3))]
        table.replace_host_rows("b", [of("b", 1)])
        with pytest.raises(BlockingIOError):  # the router's own doing
            router.recv(65536)
        for n in range(1000):  # it does not read: nobody waits
            table.put_service(row(instance=n))
    table.put_service(row(instance=4))


def test_what_is_known_of_the_cluster_goes_with_it(table):
    table.put_service(row(instance=1))
    table.set_claims(b"\1" * 16, [Claim("mine", b"\1" * 16, 1)])
    table.replace_host_rows("b", [of("b", 1)])
    table.apply_host_claims("c", {b"\2" * 16: [Claim("theirs", b"\2" * 16, 1, host="c")]})
    table.set_members({"b": {"state": "alive"}, "c": {"state": "failed"}})
    table.set_members({"c": None})
    table.set_epoch(7)
    mine, theirs = Place(("10.0.0.1", 1), bytes(8)), Place(("10.0.0.2", 2), bytes(8))
    table.set_relay("", mine)
    table.set_relay("d", theirs)
    assert table.relay("d") == theirs
    assert table.epoch() == 7
    assert table.hosts() == {"b", "c", "d"}
    assert table.members() == {"b": {"state": "alive"}}
    assert table.service(codec.service_key(of("b", 1))) == of("b", 1)
    assert table.service(codec.service_key(of("b", 2))) is None
    table.forget_cluster()
    assert table.hosts() == set()
    assert table.members() == {}
    assert table.vip_of("theirs") is None
    assert table.relay("d") is None
    assert table.relay("") == mine
    assert table.vip_of("mine") == b"\1" * 16
    assert [r.host for r in table.all_services()] == [""]


@pytest.mark.parametrize(
    ("change", "touched"),
    [
        (lambda table, vip: table.put_service(row(vip)), True),
        (lambda table, vip: table.delete_services([row(vip, instance=7)]), True),
        (lambda table, vip: table.delete_program(7), True),
        (lambda table, vip: table.set_claims(vip, [Claim("web", vip, 0)]), True),
        (lambda table, vip: table.apply_host_claims("h2", {vip: [Claim("web", vip, 0, host="h2")]}), True),
        (lambda table, vip: table.replace_host_rows("h2", [dataclasses.replace(row(vip), host="h2")]), True),
        (lambda table, vip: table.put_service(row(b"\2" * 16)), False),
        (lambda table, vip: table.put_program(1, {}), False),
        (lambda table, vip: table.set_members({"h2": {}}), False),
        (lambda table, vip: deny(table), False),
    ],
)
def test_what_was_read_of_a_virtual_ip_holds_until_something_of_it_changes(table, change, touched):
    vip = b"\1" * 16
    table.put_service(row(vip, instance=7, program=7))
    read = table.version()
    change(table, vip)
    assert table.version() > read
    assert (table.generation(vip) > read) == touched


def deny(table):
    table.add_denial(client="c", program=1, tags=(), service="web", destination="10.0.0.1", port=80, rule="r")
