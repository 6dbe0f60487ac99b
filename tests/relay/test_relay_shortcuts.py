"""Which conversations take the way past the relay: pure."""

from appswitch.relay.flows import Flow, Flows
from appswitch.relay.offload_code import KEY
from appswitch.relay.shortcuts import Entry, Shortcuts, map_key

A, B = bytes(range(12)), bytes(range(12, 24))


def conversation(one: str = "1", other: str = "2", key: bytes = A, back: bytes = B) -> Flow:
    flow = Flow(one, 10.0, 5.0)
    flow.keys = [(one, key), (other, back)]
    return flow


def open_both(plan: Shortcuts) -> Flow:
    flow = conversation()
    assert plan.want(flow) == ["1", "2"]
    plan.opened("1", 11)
    plan.opened("2", 22)
    return flow


def test_each_direction_waits_for_both_doors_and_for_its_sender() -> None:
    plan, flow = Shortcuts(), conversation()
    assert plan.want(flow) == ["1", "2"]
    assert plan.want(conversation(key=b"C" * 12, back=b"D" * 12)) == [], "they are being made"
    plan.opened("1", 11)
    assert not plan.waits("1")
    assert plan.due("1") == []
    plan.opened("2", 22)
    assert plan.waits("1")
    assert plan.waits("2")
    there = plan.due("1")
    assert [entry for found, entry in there if found is flow] == [Entry(map_key(11, A), 22)]
    assert len(there) == 2, "of both conversations"
    assert not plan.waits("1")
    assert plan.entries(flow) == [Entry(map_key(11, A), 22)], "the other direction goes by the relay"
    assert (flow, Entry(map_key(22, B), 11)) in plan.due("2")
    assert plan.due("2") == []
    assert plan.end(flow) == [Entry(map_key(11, A), 22), Entry(map_key(22, B), 11)]
    assert plan.end(flow) == plan.entries(flow) == []


def test_what_ends_before_it_is_entered_is_never_entered() -> None:
    plan = Shortcuts()
    flow = open_both(plan)
    assert plan.end(flow) == []
    assert plan.due("1") == plan.due("2") == []


def test_a_program_that_ends_takes_its_door_along() -> None:
    plan = Shortcuts()
    plan.end(open_both(plan))
    plan.leave("2")
    again = conversation()
    assert plan.want(again) == ["2"]
    assert not plan.waits("1")
    plan.opened("2", 33)
    assert plan.due("1") == [(again, Entry(map_key(11, A), 33))]


def test_a_program_that_can_have_no_door_has_conversations_by_the_relay() -> None:
    plan, flow = Shortcuts(), conversation()
    plan.want(flow)
    plan.opened("1", 11)
    plan.opened("2", None)
    assert not plan.waits("1")
    assert plan.due("1") == []
    assert plan.want(conversation()) == []
    assert plan.want(conversation(other="3")) == ["3"]


def test_a_program_may_talk_to_itself() -> None:
    plan, flow = Shortcuts(), conversation(other="1")
    assert plan.want(flow) == ["1"]
    plan.opened("1", 11)
    assert [entry for _, entry in plan.due("1")] == [Entry(map_key(11, A), 11), Entry(map_key(11, B), 11)]


def test_keys_of_both_versions_differ() -> None:
    assert map_key(7, A) == KEY.pack(7, 4, A + bytes(24))
    assert map_key(7, bytes(36)) == KEY.pack(7, 6, bytes(36)) != map_key(7, bytes(12))


def test_a_conversation_that_goes_past_the_relay_is_not_silent() -> None:
    seen = {"at": 0.0}
    gone: list[Flow] = []
    flows = Flows(lambda _: None, idle=10.0, most=8, last_seen=lambda _: seen["at"], forgotten=gone.append)
    flow = flows.begin("1", 0.0)
    flows.lead(flow, "1", A, "there")
    flow.due, seen["at"] = 1, 15.0
    assert flows.find("1", A, 20.0) is not None
    assert flow.until == 30.0
    # Nor does it go before others, when there are too many.
    seen["at"] = 100.0
    for number in range(8):
        flows.begin("1", 21.0 + number)
    assert flow not in gone
    assert len(gone) == 2
    # The negative control: as soon as it is silent it is forgotten.
    seen["at"] = 0.0
    flow.until = 30.0
    assert flows.find("1", A, 40.0) is None
    assert flow in gone
