"""Between a table and the replica: own rows go out, others' come in, and a new router takes over without a blink."""

import dataclasses
import logging

import pytest

from appswitch.cluster import mirror as module
from appswitch.cluster import rows
from appswitch.cluster.mirror import Mirror
from appswitch.cluster.ring import Ring
from appswitch.model.address import pack
from appswitch.model.identity import Claim
from appswitch.model.service import Place, Service
from appswitch.table import codec
from appswitch.table.store import Table

VIP, CLIENT = pack("100.64.1.1"), pack("169.254.3.4")


def row(instance=1, **changes):
    made = Service(
        VIP, 80, instance, 1, "web", (("group", "1"),), bytes(16), True, f"l/{instance}", ("10.0.0.1", 5), "random",
        "auto", 1.0, 0, instance, epoch=b"12345678",
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


class Host:
    def __init__(self, path, name):
        self.name, self.refused, self.rings = name, 0, []
        self.table = Table(str(path / name / "table"))
        self.start(1)

    def start(self, chance):
        self.mirror = Mirror(self.table, self.name, chance, self.refuse, self.rings.append)
        self.mirror.compare()

    def refuse(self):
        self.refused += 1

    def write(self):
        while self.mirror.write():
            pass

    def hear(self, broadcasts):
        for broadcast in broadcasts:
            self.mirror.message(broadcast)
        self.write()

    def sync(self, other):
        ours, theirs = self.mirror.replica.states(), other.mirror.replica.states()
        self.mirror.merge(theirs)
        other.mirror.merge(ours)
        self.write()
        other.write()

    def remote(self):
        return sorted((r.host, r.instance) for r in self.table.all_services() if r.remote)


@pytest.fixture
def hosts(tmp_path):
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made.append(Host(tmp_path, name))
    a, b = made
    a.mirror.alive("b")
    b.mirror.alive("a")
    a.sync(b)
    yield a, b
    for host in made:
        host.table.close()


def test_rows_and_claims_arrive_as_they_are_written(hosts):
    a, b = hosts
    a.table.put_service(row())
    a.table.put_program(1, {})
    a.table.set_claims(VIP, [Claim("web", VIP, 1000)])
    b.hear(a.mirror.changed([codec.service_key(row()), VIP]))
    assert b.table.lookup(VIP, 80)[0] == [row(host="a", listener="", cookie=0)]
    assert b.table.vip_of("web") == VIP
    assert b.mirror.programs["a"] == 1
    assert a.mirror.changed([codec.service_key(row()), VIP]) == []  # nothing new
    a.table.delete_services([row()])
    a.table.set_claims(VIP, [])
    b.hear(a.mirror.changed([codec.service_key(row()), VIP]))
    assert b.table.lookup(VIP, 80) == ([], False)
    assert b.table.vip_of("web") is None
    assert b.refused == 0


def test_keys_come_to_other_hosts_by_news_and_by_states(hosts):
    a, b = hosts
    ring = Ring.founded(bytes(32))
    b.hear(a.mirror.set_ring(ring))
    assert b.rings == [ring]
    later = ring.add(bytes(range(32)))
    a.mirror.set_ring(later)
    assert a.mirror.compare() == []
    a.sync(b)
    assert b.rings == [ring, later]
    b.mirror.gone("a")
    b.write()
    assert b.mirror.rings == {"a": later}, "kept: what it has does not change while it is away"
    assert b.refused == 0


def test_what_no_poke_told_is_found_by_comparing(hosts):
    a, b = hosts
    for n in range(3):
        a.table.put_service(row(n))
    b.hear(a.mirror.compare())
    assert b.remote() == [("a", 0), ("a", 1), ("a", 2)]
    a.table.delete_services([row(1)])
    b.hear(a.mirror.compare())
    assert b.remote() == [("a", 0), ("a", 2)]
    assert a.mirror.compare() == []


def test_what_others_cannot_use_stays_here(hosts):
    a, b = hosts
    a.table.put_service(row(1, alone=True))
    a.table.put_service(row(2, epoch=b"", real=("127.0.0.1", 5)))
    a.table.set_claims(CLIENT, [Claim(None, CLIENT, 1000)])
    b.hear(a.mirror.compare())
    b.hear(a.mirror.changed([codec.service_key(row(1)), CLIENT]))
    assert b.remote() == []
    assert b.table.names_of(CLIENT) is None


def test_a_poke_about_another_host_s_row_says_nothing(hosts):
    a, b = hosts
    b.table.put_service(row(7))
    a.hear(b.mirror.compare())
    (theirs,) = a.table.all_services()
    assert a.mirror.changed([codec.service_key(theirs), b"junk", b""]) == []


def test_many_rows_are_written_in_batches(hosts, monkeypatch):
    a, b = hosts
    monkeypatch.setattr(module, "AT_ONCE", 10)
    for n in range(35):
        a.table.put_service(row(n))
    a.mirror.compare()
    b.mirror.merge(a.mirror.replica.states())
    turns = 1
    while b.mirror.write():
        turns += 1
    assert turns == 4
    assert len(b.remote()) == 35


def test_the_rows_of_a_host_that_is_gone_go(hosts):
    a, b = hosts
    a.table.put_service(row())
    a.table.set_claims(VIP, [Claim("web", VIP, 1000)])
    b.hear(a.mirror.compare())
    b.mirror.gone("a")
    b.write()
    assert b.table.lookup(VIP, 80) == ([], False)
    b.mirror.alive("a")
    b.write()
    assert len(b.table.lookup(VIP, 80)[0]) == 1


def test_where_a_host_s_relay_is_comes_and_goes_with_it(hosts):
    a, b = hosts
    place = Place(("10.0.0.1", 5), b"12345678")
    a.table.set_relay("", place)
    b.hear(a.mirror.changed([]))
    assert b.table.relay("a") == place
    b.start(2)  # a new router
    b.mirror.disinherit()
    b.write()
    assert b.table.relay("a") is None
    b.mirror.alive("a")
    b.sync(a)
    assert b.table.relay("a") == place
    a.table.set_relay("", None)
    b.hear(a.mirror.changed([]))
    assert b.table.relay("a") is None
    assert b.mirror.programs["a"] == 0
    a.table.set_relay("", place)
    b.hear(a.mirror.compare())
    b.mirror.gone("a")
    b.write()
    assert b.table.relay("a") is None


def test_a_new_router_takes_the_rows_over_without_a_blink(hosts):
    """What is right stays, what changed meanwhile follows at the first sync."""
    a, b = hosts
    for n in range(3):
        a.table.put_service(row(n))
    a.table.set_claims(VIP, [Claim("web", VIP, 1000)])
    b.hear(a.mirror.compare())
    b.start(2)
    assert b.remote() == [("a", 0), ("a", 1), ("a", 2)]
    a.table.delete_services([row(1)])
    a.table.set_claims(VIP, [])
    a.table.set_claims(pack("10.1.1.1"), [Claim("db", pack("10.1.1.1"), 1000)])
    a.mirror.compare()
    b.mirror.alive("a")
    b.write()
    assert len(b.remote()) == 3  # not known yet
    b.sync(a)
    assert b.remote() == [("a", 0), ("a", 2)]
    assert b.table.vip_of("web") is None
    assert b.table.vip_of("db") == pack("10.1.1.1")
    assert b.mirror.replica.epoch > 2 << 32


def test_the_rows_of_hosts_unheard_of_go_in_the_end(hosts):
    a, b = hosts
    a.table.put_service(row())
    b.hear(a.mirror.compare())
    b.start(2)
    b.write()
    assert len(b.remote()) == 1
    b.mirror.disinherit()
    b.write()
    assert b.remote() == []


def test_a_router_that_forgot_its_epoch_outdoes_what_others_know(hosts):
    a, b = hosts
    a.table.put_service(row(1))
    b.hear(a.mirror.compare())
    a.table.set_epoch(0)  # as after a restart of the whole switch
    a.table.delete_services([row(1)])
    a.table.put_service(row(2))
    a.start(0)
    a.mirror.alive("b")
    for _ in range(2):
        a.sync(b)
    assert b.remote() == [("a", 2)]
    assert a.table.epoch() == a.mirror.replica.epoch


def test_rows_that_are_none_are_refused_and_the_others_taken(hosts):
    a, b = hosts
    good, bad = rows.service_key(row(1)), rows.service_key(row(2))
    effects = a.mirror.replica.change({good: rows.service_value(row(1)), bad: b"junk", b"?": b"of a later version"})
    b.hear(effects.broadcasts)
    assert b.remote() == [("a", 1)]
    assert b.refused == 1


def test_a_claim_that_does_not_hold_is_logged_where_it_was_made(hosts, caplog):
    a, b = hosts
    a.table.set_claims(VIP, [Claim("web", VIP, 1000)])
    b.table.set_claims(VIP, [Claim("web", VIP, 1001)])
    with caplog.at_level(logging.WARNING, "appswitch.router"):
        b.hear(a.mirror.compare())
        a.hear(b.mirror.compare())
    (record,) = caplog.records
    assert "web of user 1001 is held by web of user 1000 on host a" in record.getMessage()
