"""What is worth a line in the log."""

from appswitch.relay.refusals import Refusals


def test_each_thing_once_in_an_interval() -> None:
    refusals = Refusals(interval=60, burst=20)
    assert refusals.worth_a_line("web", ("192.0.2.1", 123), 0)
    assert not refusals.worth_a_line("web", ("192.0.2.1", 123), 59)
    assert refusals.worth_a_line("web", ("192.0.2.1", 124), 59)
    assert refusals.worth_a_line("db", ("192.0.2.1", 123), 59)
    assert refusals.worth_a_line("web", ("192.0.2.1", 123), 60)


def test_a_port_scan_is_cut_short() -> None:
    refusals = Refusals(interval=60, burst=20)
    assert sum(refusals.worth_a_line("web", port, port / 100000) for port in range(65536)) == 20
    assert refusals.worth_a_line("db", 1, 1)  # another program's lines are its own
    assert refusals.worth_a_line("web", 1, 61)
    assert len(refusals._said["web"]) <= 20


def test_forget() -> None:
    refusals = Refusals()
    assert refusals.worth_a_line("web", 1, 0)
    refusals.forget("web")
    assert refusals.worth_a_line("web", 1, 1)
    refusals.forget("nobody")
