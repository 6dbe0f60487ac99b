"""When which server is asked, and who gets the answer: without sockets, under a clock of the test."""

import dnslib
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from appswitch.dns import message as m
from appswitch.dns.cache import Cache
from appswitch.dns.inquiries import HURRY, SHUNNED, Abandon, Deliver, Effect, Inquiries, Send
from appswitch.dns.resolv_conf import parse

HOST = parse("nameserver 192.0.2.1\nnameserver 192.0.2.2\n")
ONE = parse("nameserver 192.0.2.1\n")
PATIENCE = 5 * HURRY


def query(name: str = "host.test", ident: int = 7) -> bytes:
    record = dnslib.DNSRecord.question(name)
    record.header.id = ident
    return bytes(record.pack())


def answer(wire: bytes, ttl: int = 0, rcode: int = 0, tc: int = 0) -> bytes:
    record = dnslib.DNSRecord.parse(wire)
    reply = record.reply()
    reply.header.rcode, reply.header.tc = rcode, tc
    if not rcode:
        reply.add_answer(dnslib.RR(record.q.qname, ttl=ttl, rdata=dnslib.A("192.0.2.80")))
    return bytes(reply.pack())


def inquiries(**bounds: int) -> Inquiries:
    numbers = iter(range(1, 1 << 16))
    return Inquiries(lambda: next(numbers), **bounds)


def sends(effects: list[Effect]) -> list[tuple[str, bool]]:
    return [(effect.server[1][0], effect.over_tcp) for effect in effects if isinstance(effect, Send)]


def delivered(effects: list[Effect]) -> list[tuple[object, int]]:
    found = [effect for effect in effects if isinstance(effect, Deliver)]
    return [(effect.client, effect.message[3] & 15) for effect in found]


def test_every_server_is_asked_as_often_as_the_host_has_it_within_the_time_for_one() -> None:
    core = inquiries()
    sent = sends(core.ask(query(), "web", "c", False, HOST, 0.0))
    times = [0.0]
    while (now := core.next_due()) is not None:
        effects = core.due(now)
        if new := sends(effects):
            sent += new
            times.append(now)
        else:
            assert delivered(effects) == [("c", m.SERVFAIL)]
            assert now == pytest.approx(PATIENCE)
    assert sent == [("192.0.2.1", False), ("192.0.2.2", False)] * 2
    assert times == pytest.approx([0, PATIENCE / 5, 2 * PATIENCE / 5, 3 * PATIENCE / 5])


def test_rotate_begins_with_another_server_each_time() -> None:
    core = inquiries()
    host = parse("nameserver 192.0.2.1\nnameserver 192.0.2.2\noptions rotate\n")
    firsts = [sends(core.ask(query(f"{n}.test"), "web", n, False, host, 0.0))[0][0] for n in range(4)]
    assert firsts == ["192.0.2.1", "192.0.2.2"] * 2


def test_who_was_silent_is_asked_last_for_a_while() -> None:
    core = inquiries()
    core.ask(query(), "web", 1, False, HOST, 0.0)
    now = core.next_due() or 0.0
    (second,) = [effect for effect in core.due(now) if isinstance(effect, Send)]
    assert delivered(core.heard(second.attempt, answer(second.wire), now + 0.01)) == [(1, 0)]
    assert sends(core.ask(query("b.test"), "web", 2, False, HOST, now + 1)) == [("192.0.2.2", False)]
    assert sends(core.ask(query("c.test"), "web", 3, False, HOST, now + 1 + SHUNNED)) == [("192.0.2.1", False)]


def test_the_first_answer_of_a_slow_server_counts_though_it_was_asked_again() -> None:
    core = inquiries()
    (first,) = core.ask(query(), "web", 1, False, ONE, 0.0)
    assert isinstance(first, Send)
    core.due(core.next_due() or 0.0)
    effects = core.heard(first.attempt, answer(first.wire), 4.0)
    assert delivered(effects) == [(1, 0)]
    assert sum(isinstance(effect, Abandon) for effect in effects) == 2
    assert sends(core.ask(query("b.test"), "web", 2, False, HOST, 5.0)) == [("192.0.2.1", False)]  # not silent


def test_clients_that_ask_the_same_share_one_question() -> None:
    core = inquiries()
    (first,) = core.ask(query("Host.Test", ident=1), "web", "a", False, HOST, 0.0)
    assert isinstance(first, Send)
    assert core.ask(query("hOST.tEST", ident=2), "db", "b", False, HOST, 0.1) == []
    effects = [effect for effect in core.heard(first.attempt, answer(first.wire), 0.2) if isinstance(effect, Deliver)]
    found = [(effect.client, dnslib.DNSRecord.parse(effect.message)) for effect in effects]
    assert [(client, one.header.id, str(one.q.qname)) for client, one in found] == [
        ("a", 1, "Host.Test."),
        ("b", 2, "hOST.tEST."),
    ]


def test_an_answer_is_kept_for_the_next_who_asks() -> None:
    core = inquiries()
    (first,) = core.ask(query(), "web", "a", False, HOST, 0.0)
    assert isinstance(first, Send)
    core.heard(first.attempt, answer(first.wire, ttl=20), 0.2)
    (kept,) = core.ask(query("HOST.test", ident=9), "db", "b", False, HOST, 10.3)
    assert isinstance(kept, Deliver)
    found = dnslib.DNSRecord.parse(kept.message)
    assert (found.header.id, str(found.q.qname), found.rr[0].ttl) == (9, "HOST.test.", 10)
    assert sends(core.ask(query(), "db", "b", False, HOST, 20.3)) == [("192.0.2.1", False)]


@pytest.mark.parametrize("rcode", [m.SERVFAIL, m.REFUSED])
def test_errors_and_cut_answers_are_not_kept(rcode: int) -> None:
    core = inquiries()
    for now, reply in ((0.0, {"rcode": rcode}), (1.0, {"tc": 1, "ttl": 20}), (2.0, {})):
        (first,) = core.ask(query(), "web", "a", False, ONE, now)
        assert isinstance(first, Send)
        assert delivered(core.heard(first.attempt, answer(first.wire, **reply), now))
    assert len(core.cache) == 0


def test_a_forged_answer_changes_nothing() -> None:
    core = inquiries()
    (first,) = core.ask(query(), "web", "a", False, HOST, 0.0)
    assert isinstance(first, Send)
    right = answer(first.wire)
    for forged in (
        (int.from_bytes(right[:2], "big") ^ 1).to_bytes(2, "big") + right[2:],
        right.replace(b"host", b"gast"),
        first.wire,
        b"",
        right[:-1],  # its records cannot be read, but it is from there: the next is asked
    ):
        assert delivered(core.heard(first.attempt, forged, 0.1)) == []
    assert delivered(core.heard(first.attempt + 1000, right, 0.1)) == []
    assert len(core) == 1


class AnyCourse(RuleBasedStateMachine):
    """Whatever servers do and clients ask: one answer for each client, to its own question, in bounded time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        numbers = iter(range(1, 1 << 16))
        self.core = Inquiries(lambda: next(numbers), Cache(entries=3), limit=12, share=7)
        self.attempts: dict[int, Send] = {}
        self.waiting: dict[int, tuple[bytes, str, float]] = {}
        self.clients = 0

    def do(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                assert effect.attempt not in self.attempts
                self.attempts[effect.attempt] = effect
            elif isinstance(effect, Abandon):
                del self.attempts[effect.attempt]
            else:
                raw, _, since = self.waiting.pop(effect.client)
                assert effect.message[:2] == raw[:2]
                assert effect.message[12 : len(raw)] == raw[12:]
                assert effect.message[2] & 0x80
                assert self.now - since <= 2 * PATIENCE + 0.001  # twice: UDP, then TCP

    @rule(
        name=st.sampled_from(["a.test", "A.test", "b.test", "c.test"]),
        owner=st.sampled_from(["web", "db"]),
        ident=st.integers(0, 65535),
        tcp=st.booleans(),
        host=st.sampled_from([ONE, HOST]),
    )
    def ask(self, name: str, owner: str, ident: int, tcp: bool, host: object) -> None:
        raw = query(name, ident)
        self.clients += 1
        self.waiting[self.clients] = raw, owner, self.now
        self.do(self.core.ask(raw, owner, self.clients, tcp, host, self.now))  # type: ignore[arg-type]

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), rcode=st.sampled_from([0, 0, 2, 3, 5]), ttl=st.integers(0, 9), tc=st.booleans())
    def answer(self, data: st.DataObject, rcode: int, ttl: int, tc: bool) -> None:
        sent = self.attempts[data.draw(st.sampled_from(sorted(self.attempts)))]
        self.do(self.core.heard(sent.attempt, answer(sent.wire, ttl, rcode, tc), self.now))

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        self.do(self.core.failed(data.draw(st.sampled_from(sorted(self.attempts))), self.now))

    @rule(seconds=st.floats(0.01, 3))
    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while (due := self.core.next_due()) is not None and due <= until:
            self.now = max(self.now, due)
            self.do(self.core.due(self.now))
        self.now = until

    @rule(owner=st.sampled_from(["web", "db"]))
    def end(self, owner: str) -> None:
        self.do(self.core.forget(owner))
        self.waiting = {client: item for client, item in self.waiting.items() if item[1] != owner}

    @invariant()
    def nothing_is_left_over(self) -> None:
        assert len(self.core) == len(self.waiting) <= 12
        assert bool(self.waiting) == bool(self.attempts) == (self.core.next_due() is not None)
        assert set(self.core._attempts) == set(self.attempts)

    def teardown(self) -> None:
        self.wait(2 * PATIENCE + 1)
        assert not self.waiting


TestAnyCourse = AnyCourse.TestCase
TestAnyCourse.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
