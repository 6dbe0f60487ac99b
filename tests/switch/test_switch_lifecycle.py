"""A switch's life with real processes: up, down, deaths, and what it keeps hold of (points 1, 12, 13)."""

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from appswitch.switch import wire
from support import modes
from support.modes import MYSELF, ORDINARY, Person
from support.program import DEADLINE, wait_until
from support.switch import Switch

NewSwitch = Callable[..., Switch]

#: For what does not depend on whose the switch is.
one_mode = pytest.mark.parametrize("mode", modes.possible()[:1], ids=str)


def only(name: str) -> pytest.MarkDecorator:
    """In this mode alone, if the suite's privilege allows it (else the closing report names the mode)."""
    return pytest.mark.parametrize("mode", [mode for mode in modes.possible() if mode.name == name], ids=str)


def ends(pid: int, timeout: float = DEADLINE) -> bool:
    """Does the process end within the time?"""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(1000 * timeout))
    finally:
        os.close(pidfd)


def roles(switch: Switch) -> dict[str, int]:
    return {process["role"]: process["pid"] for process in switch.cli("status", "-o", "json")["processes"]}


def asked_directly(switch: Switch) -> dict[str, int]:
    """The same as `roles`, without the time that a command takes."""
    with connect(switch) as sock:
        wire.send(sock, {"op": "status"})
        return {process["role"]: process["pid"] for process in wire.receive(sock)["result"]["processes"]}


def programs(switch: Switch) -> list[str]:
    return [row["name"] for row in switch.cli("ps", "-o", "json")]


def connect(switch: Switch) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(DEADLINE)
    sock.connect(str(switch.run_dir / "control.sock"))
    return sock


def kill_for_good(switch: Switch) -> None:
    """Both of those that start each other again, at once."""
    now = roles(switch)
    os.kill(now["supervisor"], signal.SIGSTOP)
    for role in ("keeper", "supervisor"):
        os.kill(now[role], signal.SIGKILL)
    assert all(ends(pid) for pid in now.values()), "the others end with their supervisor"


def check_modes(switch: Switch) -> None:
    """Root's run directory can be passed through; what lies in it is private, but for what programs see."""
    expected = dict.fromkeys(("table", "stats", "state", "l"), 448) | {"resolv.conf": 0o644}
    expected["control.sock"] = 0o666 if switch.mode.up_options else 0o600
    expected["."] = 0o755 if switch.mode.switch_owner.uid == 0 else 0o700
    assert {name: (switch.run_dir / name).stat().st_mode & 0o777 for name in expected} == expected


def test_up_twice_is_one_switch_and_down_leaves_nothing(new_switch: NewSwitch) -> None:
    switch = new_switch()
    first = switch.control("up", *switch.mode.up_options, status=0).stdout
    assert "is up in" in first
    before = roles(switch)
    assert set(before) == {"supervisor", "keeper", "relay", *(role for role in before if role.startswith("worker-"))}
    names = ["appswitch-sup", "appswitch-keep", "appswitch-relay", "appswitch-wrk0"]

    def comm() -> list[str]:
        pids = [before[role] for role in ("supervisor", "keeper", "relay", "worker-0")]
        return [Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids]

    # Each names itself when it begins, which it may be about to.
    wait_until(lambda: comm() == names, lambda: f"{names}, not {comm()}")
    check_modes(switch)
    assert (switch.run_dir / "switch.lock").read_text() == f"{before['supervisor']}\n"
    again = switch.control("up", status=0).stdout
    assert "already up" in again
    assert "--workers" not in again
    again = switch.control("up", "--workers", "2", status=0).stdout
    assert "keeps the settings that it was started with: --workers would" in again
    assert roles(switch) == before
    assert switch.control("down", status=0).stdout == "The switch is down.\n"
    last = [before.pop(role) for role in ("supervisor", "keeper")]
    assert all(ends(pid, 0) for pid in before.values()), "down returns when everything has ended"
    assert all(ends(pid) for pid in last), "they have said so last"
    assert not switch.run_dir.exists()


@one_mode
def test_without_a_switch_every_command_says_so(new_switch: NewSwitch) -> None:
    switch = new_switch()
    for words in (["status"], ["ps"], ["services"], ["denials"], ["down"], ["ps", "-o", "json"]):
        done = switch.control(*words, status=1)
        assert done.stdout == ""
        assert re.fullmatch(r"appswitch: no switch is up in \S+: start one with `appswitch up`.*\n", done.stderr)
    assert not switch.run_dir.exists()


@only("user-own")
def test_down_is_refused_while_programs_run(switch: Switch) -> None:
    program = switch.run(["sleep", "60"], name="sleeper")
    wait_until(lambda: programs(switch) == ["sleeper"], lambda: "the program")
    refused = switch.control("down", status=1)
    assert "1 program runs under this switch (sleeper)" in refused.stderr
    assert "--force" in refused.stderr
    assert programs(switch) == ["sleeper"]
    before = roles(switch)
    forced = switch.control("down", "--force", status=0)
    assert "1 program runs on without network" in forced.stdout
    assert all(ends(pid) for pid in before.values())
    assert program.returncode is None, "it is left running"


@only("user-root")
def test_only_its_user_and_root_may_take_it_down(switch: Switch) -> None:
    refused = switch.control("down", "--force", user=ORDINARY, status=1)
    assert "only that user and root" in refused.stderr
    assert roles(switch)


@only("user-own")
def test_a_program_is_known_until_its_last_process_ends(switch: Switch, python: str) -> None:
    """A daemon's first process ends at once; the identity lives on with its child, and is free after that."""
    script = (
        "import os, time\nready, write = os.pipe()\nif os.fork(): os.read(ready, 1); os._exit(7)\n"
        "print(os.getpid(), flush=True)\nos.write(write, b'!')\ntime.sleep(60)"
    )
    program = switch.run([python, "-c", script], name="daemon")
    child = int(program.wait_output(r"\d+").group())
    assert program.wait() == 7
    assert programs(switch) == ["daemon"]
    os.kill(child, signal.SIGTERM)
    wait_until(lambda: programs(switch) == [], lambda: "the end of the identity")


@only("user-root")
def test_a_name_belongs_to_one_user_while_its_program_runs(switch: Switch) -> None:
    stranger = Person(ORDINARY.uid + 1, ORDINARY.gid + 1)
    owner = switch.run(["sleep", "60"], name="mine")
    wait_until(lambda: programs(switch) == ["mine"], lambda: "the program")
    refused = switch.check(["true"], name="mine", user=stranger, status=125, cwd="/")
    assert f"belongs to a running program of user {ORDINARY.uid}" in refused.stderr
    switch.check(["true"], name="mine", status=0)
    switch.check(["true"], name="mine", user=MYSELF, status=0)
    owner.kill()
    wait_until(lambda: programs(switch) == [], lambda: "the end of the program")
    switch.check(["true"], name="mine", user=stranger, status=0, cwd="/")


@pytest.mark.skipif(MYSELF.uid != 0, reason="needs a second user")
@only("user-own")
def test_an_ordinary_users_switch_serves_nobody_else(switch: Switch) -> None:
    refused = switch.check(["true"], user=MYSELF, status=125)
    assert f"runs as user {ORDINARY.uid}" in refused.stderr


@one_mode
def test_a_dead_switch_is_noticed_and_replaced(switch: Switch) -> None:
    before = roles(switch)
    kill_for_good(switch)
    assert (switch.run_dir / "control.sock").exists()
    assert "no switch is up" in switch.control("status", status=1).stderr
    switch.up()
    assert roles(switch)["supervisor"] != before["supervisor"]
    assert (switch.run_dir / "switch.log.old").exists()


@one_mode
@pytest.mark.parametrize("role", ["supervisor", "keeper"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_takes_it_down_in_order(switch: Switch, number: int, role: str) -> None:
    before = roles(switch)
    os.kill(before[role], number)
    assert all(ends(pid) for pid in before.values())
    assert not switch.run_dir.exists()


@one_mode
def test_a_supervisor_that_dies_on_its_way_down_does_not_come_up_again(switch: Switch) -> None:
    now = roles(switch)
    os.kill(now["worker-0"], signal.SIGSTOP)  # so that there is something to wait for
    os.kill(now["supervisor"], signal.SIGTERM)
    assert ends(now["relay"])
    with contextlib.suppress(ProcessLookupError):  # after three seconds it has killed the worker, and is gone itself
        os.kill(now["supervisor"], signal.SIGKILL)
    assert all(ends(pid) for pid in now.values())
    assert not switch.run_dir.exists()


@one_mode
def test_a_keeper_that_does_not_answer_is_replaced(switch: Switch, python: str) -> None:
    """A port that was closed is free when no process has a copy of what held it: the keeper has to say so."""
    keeper = roles(switch)["keeper"]
    os.kill(keeper, signal.SIGSTOP)
    script = "import socket\nfor _ in range(3): socket.create_server(('', 80)).close()"
    switch.check([python, "-c", script], name="reopening", status=0)
    assert ends(keeper)


@one_mode
def test_in_the_foreground_it_logs_to_standard_error_and_ctrl_c_ends_it(new_switch: NewSwitch) -> None:
    switch = new_switch()
    command = switch.command_line([])[0]
    program = switch.start([command, "up", "--foreground"], "up", switch.mode.switch_owner)
    program.wait_output("is up in")
    wait_until(lambda: "the switch is up" in program.errors(), lambda: "the log line")
    os.killpg(program.pid, signal.SIGINT)  # the children are in the group, as on a terminal
    assert program.wait() == 0
    assert "Traceback" not in program.errors()
    assert not switch.run_dir.exists()


SERVER = """
import socket
listener = socket.create_server(("", 80))
print("ready", flush=True)
kept = []
while True:
    connection, _ = listener.accept()
    connection.send(b"here")
    kept.append(connection)
"""

CLIENT = """
import socket, sys
first = socket.create_connection(("web", 80))
print(first.recv(4).decode(), flush=True)
sys.stdin.readline()
print(socket.create_connection(("web", 80)).recv(4).decode() + " again", flush=True)
first.send(b"x")
first.settimeout(0.01)
try:
    first.recv(1)
except TimeoutError:
    print("untouched", flush=True)
"""


def test_workers_and_relay_are_started_again_and_programs_go_on(switch: Switch, python: str) -> None:
    """Names are answered, services reached and connections kept as if nothing had happened."""
    server = switch.run([python, "-c", SERVER], name="web")
    server.wait_output("ready")
    client = switch.run([python, "-c", CLIENT], name="client", stdin=subprocess.PIPE)
    client.wait_output("here")
    before = roles(switch)
    for role in ("worker-0", "relay"):
        os.kill(before[role], signal.SIGKILL)

    def replaced() -> bool:
        now = roles(switch)
        return len(now) == len(before) and now["worker-0"] != before["worker-0"] and now["relay"] != before["relay"]

    wait_until(replaced, lambda: f"others than {before}")
    assert roles(switch)["supervisor"] == before["supervisor"]
    assert switch.cli("status", "-o", "json")["restarts"] == 2
    client.stdin.write(b"\n")
    client.stdin.close()
    assert client.wait() == 0
    assert client.output().split("\n")[:3] == ["here", "here again", "untouched"], client
    wait_until(lambda: programs(switch) == ["web"], lambda: "the end of the client")


@only("user-own")
def test_denials_tell_who_wanted_what_and_which_rule_refused(switch: Switch, python: str) -> None:
    server = switch.run([python, "-c", SERVER], name="web", tags=["group=1"])
    server.wait_output("ready")
    call = "import socket; socket.create_connection(('web', 80))"
    refused = switch.check([python, "-c", call], name="caller", tags=["group=2"], status=1)
    assert "PermissionError: [Errno 13]" in refused.stderr
    [row] = switch.cli("denials", "-o", "json")
    assert list(row) == ["time", "client", "service", "destination", "port", "rule", "program", "tags"]
    assert (row["client"], row["service"], row["port"], row["tags"]) == ("caller", "web", 80, ["group=2"])
    assert datetime.fromisoformat(row["time"]).tzinfo is not None
    assert switch.cli("status", "-o", "json")["denied"] == 1
    assert switch.cli("denials").splitlines()[1].endswith(row["rule"])


@one_mode
def test_a_worker_that_keeps_dying_is_not_started_in_a_spin(switch: Switch) -> None:
    """After ten deaths within ten seconds there is a pause of a second (each below it: all within ten)."""
    pid, waits = asked_directly(switch)["worker-0"], []
    for _ in range(10):
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        assert ends(pid)
        pid = wait_until(lambda: asked_directly(switch).get("worker-0"), lambda: "a worker")
        waits.append(time.monotonic() - killed)
    assert max(waits) >= 1.0
    switch.check(["true"], status=0)


@one_mode
def test_a_removed_run_directory_ends_the_switch(switch: Switch) -> None:
    before = roles(switch)
    (switch.run_dir / "control.sock").unlink()
    assert all(ends(pid) for pid in before.values())
    assert not switch.run_dir.exists()


@one_mode
def test_idle_it_never_wakes_up(switch: Switch) -> None:
    program = switch.run(["sleep", "60"], name="idle")
    wait_until(lambda: programs(switch) == ["idle"], lambda: "the program")

    def switches() -> list[int]:
        texts = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
        return [int(number) for text in texts for number in re.findall(r"ctxt_switches:\t(\d+)", text)]

    pids = list(roles(switch).values())

    def sleeps() -> bool:
        before = switches()
        time.sleep(1.2)  # longer than anything that runs each second
        return switches() == before

    wait_until(sleeps, lambda: "the end of what `status` itself set off")
    assert program.returncode is None


@one_mode
def test_a_slow_client_holds_nobody_up(switch: Switch) -> None:
    with connect(switch) as slow, connect(switch) as silent:
        slow.send(wire.encode({"op": "status"})[:7])
        for _ in range(3):
            assert "supervisor" in asked_directly(switch)
        slow.send(wire.encode({"op": "status"})[7:])
        assert wire.receive(slow)["ok"]
        assert silent.fileno() >= 0


NONSENSE = (
    b"\xff" * 64,
    b"\0\0\0\2[]",
    b"\0\0\0\2{}",
    b'\0\0\0\x0e{"op":"dance"}',
    b'\0\0\0\x0b{"op":null}',
    b'\0\0\0\x0f{"op":"attach"}',
    b"\0\0\0\4\xff\xfe{}",
    b"GET / HTTP/1.0\r\n\r\n",
)


@one_mode
def test_nonsense_is_answered_with_no_or_an_end(switch: Switch) -> None:
    before = roles(switch)
    for data in NONSENSE:
        with connect(switch) as sock:
            sock.send(data)
            try:
                assert wire.receive(sock)["ok"] is False
            except ConnectionError:
                pass
            assert sock.recv(1) == b""
    assert roles(switch) == before
    assert "Traceback" not in (switch.run_dir / "switch.log").read_text()


@one_mode
def test_descriptors_that_are_no_programs_are_refused_and_closed(switch: Switch) -> None:
    supervisor = roles(switch)["supervisor"]
    fd_directory = Path(f"/proc/{supervisor}/fd")
    before = len(list(fd_directory.iterdir()))
    counts = {"listener": 1, "device": 1, "acceptors": 2, "diags": 2, "dns": 1}
    for wrong in (counts, counts | {"dns": 2}, counts | {"dns": True}, {}, None):
        with connect(switch) as sock, open("/dev/null") as null:
            wire.send(sock, {"op": "register", "name": "odd"})
            assert wire.receive(sock)["ok"]
            message = {"op": "attach", "device": {"kind": "tun", "ifindex": 2}, "fds": wrong}
            wire.send(sock, message, [null.fileno()] * 7)
            reply = wire.receive(sock)
            assert reply["ok"] is False
            assert "descriptors are not as the switch knows them" in reply["error"]
    assert switch.cli("ps", "-o", "json") == []
    wait_until(lambda: len(list(fd_directory.iterdir())) <= before, lambda: "the descriptors to be closed")


@one_mode
def test_an_identity_that_no_program_takes_is_free_again(switch: Switch) -> None:
    with connect(switch) as sock:
        wire.send(sock, {"op": "register", "ip": "10.1.1.1", "name": "a"})
        assert wire.receive(sock)["vip"] == "10.1.1.1"
        with connect(switch) as other:
            wire.send(other, {"op": "register", "ip": "10.1.1.2", "name": "a"})
            assert "already stands for 10.1.1.1" in wire.receive(other)["error"]

    def free() -> bool:
        with connect(switch) as other:
            wire.send(other, {"op": "register", "ip": "10.1.1.2", "name": "a"})
            return bool(wire.receive(other)["ok"])

    wait_until(free, lambda: "the name to be free")


@only("user-own")
def test_lists_are_stable_json_and_plain_columns(switch: Switch, python: str) -> None:
    server = "import socket, time\ns = socket.create_server(('', 80))\nprint('ready', flush=True)\ntime.sleep(60)"
    program = switch.run([python, "-c", server], name="web", tags=["group=1", "tier=front"])
    program.wait_output("ready")
    [row] = switch.cli("ps", "-o", "json")
    keys = ["id", "pid", "uid", "user", "name", "vip", "tags", "command", "since", "services", "fenced"]
    assert list(row) == keys
    assert row["fenced"] is None
    assert row["pid"] == program.pid
    assert row["uid"] == switch.mode.program_owner.uid
    assert (row["name"], row["tags"], row["services"]) == ("web", ["group=1", "tier=front"], [80])
    assert row["command"].startswith(f"{python} -c ")
    [service] = switch.cli("services", "-o", "json")
    expected = ["name", "vip", "port", "protocol", "instance", "program", "bound", "address", "listener"]
    expected += ["transport", "balance", "tags", "since_s", "host", "weight", "uid", "published"]
    assert list(service) == expected
    assert (service["name"], service["vip"], service["port"]) == ("web", row["vip"], 80)
    assert service["protocol"] == "tcp"
    assert service["program"] == row["id"]
    assert 0 <= service["since_s"] < 60
    status = switch.cli("status", "-o", "json")
    assert (status["programs"], status["services"], status["run_dir"]) == (1, 1, str(switch.run_dir))
    assert status["traps"] == status["counters"]["traps"] > 0
    assert status["uptime_s"] > 0
    header, line = switch.cli("ps").splitlines()
    assert header.split() == ["ID", "PID", "USER", "NAME", "VIP", "TAGS", "PORTS", "AGE", "COMMAND"]
    assert line.index(row["vip"]) == header.index("VIP")
    assert "\t" not in header + line
    assert json.loads(switch.control("denials", "-o", "json", status=0).stdout) == []
    assert switch.cli("ps", "--connections", "-o", "json") == []


@one_mode
def test_a_closed_listener_is_no_service(switch: Switch, python: str) -> None:
    server = (
        "import socket, sys\ns = socket.create_server(('', 80))\nprint('1', flush=True)\n"
        "sys.stdin.readline()\ns.close()\nprint('2', flush=True)\nsys.stdin.readline()"
    )
    program = switch.run([python, "-c", server], name="web", stdin=-1)
    program.wait_output("1")
    assert len(switch.services("web")) == 1
    program.stdin.write(b"\n")
    program.stdin.flush()
    program.wait_output("2")
    assert switch.services("web") == []


@only("user-own")
def test_connections_are_shown_from_both_sides_while_they_last(switch: Switch, python: str) -> None:
    server = (
        "import socket\ns = socket.create_server(('', 80))\nprint('ready', flush=True)\n"
        "c, _ = s.accept()\nc.recv(1)\nc.close()\nprint('closed', flush=True)\ns.accept()"
    )
    client = (
        "import socket, sys\nc = socket.create_connection(('web', 80))\nprint('connected', flush=True)\n"
        "sys.stdin.readline()\nc.close()\nprint('done', flush=True)\nsys.stdin.readline()"
    )
    serving = switch.run([python, "-c", server], name="web")
    serving.wait_output("ready")
    calling = switch.run([python, "-c", client], name="caller", stdin=-1)
    calling.wait_output("connected")

    def sides() -> dict[str, dict[str, object]]:
        return {row["side"]: row for row in switch.cli("ps", "--connections", "-o", "json")}

    found = wait_until(lambda: rows if len(rows := sides()) == 2 else None, lambda: f"both sides: {sides()}")
    assert found["client"]["name"] == "caller"
    assert found["server"]["name"] == "web"
    assert found["client"]["local"] == found["server"]["peer"]
    assert found["client"]["peer"] == found["server"]["local"]
    assert found["client"]["transport"] == found["server"]["transport"]
    calling.stdin.write(b"\n")
    calling.stdin.flush()
    calling.wait_output("done")
    serving.wait_output("closed")
    assert sides() == {}


@one_mode
def test_range_workers_and_log_level_are_chosen_at_up(new_switch: NewSwitch) -> None:
    switch = new_switch()
    switch.up("--range", "10.200.0.0/16", "--workers", "2", "--log-level", "debug")
    assert {"worker-0", "worker-1"} < set(roles(switch))
    assert "nameserver 10.200.0.53\n" in (switch.run_dir / "resolv.conf").read_text()
    program = switch.run(["sleep", "60"], name="ranged")
    [row] = wait_until(lambda: switch.cli("ps", "-o", "json"), lambda: "the program")
    assert row["vip"].startswith("10.200.")
    assert program.returncode is None


@one_mode
def test_options_of_up_that_make_no_sense_are_refused(new_switch: NewSwitch) -> None:
    switch = new_switch()
    for option, value in (
        ("--range", "100.64.0.0"),
        ("--range", "fd00::/8"),
        ("--workers", "0"),
        ("--workers", "many"),
        ("--socket-mode", "rw"),
        ("--socket-group", "no such group"),
        ("--resolver", "dns.example"),
        ("--log-level", "chatty"),
    ):
        refused = switch.control("up", option, value, status=2)
        assert refused.stderr.startswith("appswitch: ")
        assert option in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    assert not switch.run_dir.exists()
