"""Which transport a connection takes, and that `appswitch ps --connections` says so (issue point 3)."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.modes import Mode, Person
from support.program import Program, wait_until
from support.switch import Row, Switch

VIP = "100.64.77.7"
WMEM_MAX = Path("/proc/sys/net/core/wmem_max")

AUTO = {
    "plain": "unix",
    "dup_before": "unix",
    "epoll_elsewhere": "unix",
    "after_a_refusal": "unix",
    "with_options": "unix",
    "epoll_level_before": "unix",
    "epoll_edge_before": "unix",
    "epoll_oneshot_before": "unix",
    "epoll_exclusive_before": "unix",
    "epoll_in_a_dup": "unix",
    "epoll_that_is_a_dup": "unix",
    "epoll_in_an_epoll": "unix",
    "epoll_of_a_child": "unix",
    "epoll_oneshot_fired": "tcp",
    "epolls_too_many": "tcp",
    "fork_before": "tcp",
    "linger_of_zero": "tcp",
    "low_water_mark": "tcp",
}
"""Ways to make a connection (scenes/holding.py), and the transport that each takes when nothing is asked for."""


def unix_allowed(mode: Mode) -> bool:
    """Whether the switch can give Unix pairs the room that TCP has."""
    return mode.switch_owner.uid == 0 or int(WMEM_MAX.read_text()) >= 4 << 20


@pytest.fixture
def holding(python: str, scenes: Path) -> Callable[..., tuple[Program, dict[str, int]]]:
    """Starts a program that holds connections; gives it, and the clients' ports by the way they were made."""

    def start(switch: Switch, *options: str, ways: tuple[str, ...] = tuple(AUTO)) -> tuple[Program, dict[str, int]]:
        program = switch.run(
            [python, scenes / "holding.py", *ways],
            ip=VIP,
            options=options,
            env={"SCENE_HOST": VIP},
            cwd=scenes,
            stdin=subprocess.PIPE,
        )

        def look() -> dict[str, int] | None:
            lines = [line.split() for line in program.output().splitlines()]
            assert program.returncode is None, program
            return {name: int(port) for name, port in lines} if len(lines) == len(ways) else None

        return program, wait_until(look, lambda: f"connections of {program}")

    return start


def transports(switch: Switch, ports: dict[str, int]) -> dict[str, str]:
    """The transport of each connection, for which both ends must say the same."""
    rows: list[Row] = switch.cli("ps", "--connections", "-o", "json")
    found = {}
    for name, port in ports.items():
        place = f"{VIP}:{port}"
        [client] = [row for row in rows if row["local"] == place and row["side"] == "client"]
        [server] = [row for row in rows if row["peer"] == place and row["side"] == "server"]
        assert client["peer"] == server["local"]
        assert client["transport"] == server["transport"]
        found[name] = client["transport"]
    return found


def test_transport_is_unix_wherever_that_is_safe(
    mode: Mode, switch: Switch, holding: Callable[..., tuple[Program, dict[str, int]]]
) -> None:
    program, ports = holding(switch)
    expected = AUTO if unix_allowed(mode) else dict.fromkeys(AUTO, "tcp")
    assert transports(switch, ports) == expected
    counters = switch.cli("status", "-o", "json")["counters"]
    assert counters["unix"] >= sum(kind == "unix" for kind in expected.values())
    program.stdin.close()
    assert program.wait() == 0
    wait_until(lambda: switch.cli("ps", "--connections", "-o", "json") == [], lambda: "no connections")


def test_transport_can_be_asked_for(
    switch: Switch, python: str, holding: Callable[..., tuple[Program, dict[str, int]]]
) -> None:
    _, ports = holding(switch, "--transport", "tcp")
    assert set(transports(switch, ports).values()) == {"tcp"}
    _, ports = holding(switch, "--transport", "unix")
    # What a Unix socket cannot do stays TCP even so.
    assert transports(switch, ports) == AUTO
    the_service_asks_for_tcp(switch, python)


SERVER = """
import socket
server = socket.create_server(("", 7000))
accepted, _ = server.accept()
print(accepted.recv(9), flush=True)
accepted.recv(9)
"""
CLIENT = """
import socket
client = socket.create_connection(("server", 7000))
client.sendall(b"hello")
client.recv(1)
"""


def the_service_asks_for_tcp(switch: Switch, python: str) -> None:
    server = switch.run([python, "-c", SERVER], name="server", options=("--transport", "tcp"))
    switch.wait_service("server", 7000)
    switch.run([python, "-c", CLIENT], name="client")
    server.wait_output("hello")
    rows = switch.cli("ps", "--connections", "-o", "json")
    found = {(row["name"], row["transport"]) for row in rows if row["name"] in ("server", "client")}
    assert found == {("server", "tcp"), ("client", "tcp")}


def test_small_buffers_without_privilege_mean_tcp(
    mode: Mode,
    new_switch: Callable[..., Switch],
    compare: Callable[..., None],
    holding: Callable[..., tuple[Program, dict[str, int]]],
    appswitch_command: Callable[[Person], Path],
    c_program: Callable[..., Path],
) -> None:
    """As net.core.wmem_max limits them, which is the whole machine's: other tests must not meet another one."""
    switch = new_switch()
    command = [str(appswitch_command(mode.switch_owner)), "up", *mode.up_options]
    preload = {"LD_PRELOAD": str(c_program("small_buffers", "-shared", "-fPIC"))}
    assert switch.start(command, "up", mode.switch_owner, preload).wait() == 0
    _, ports = holding(switch, ways=("plain", "epoll_edge_before"))
    plain = "unix" if mode.switch_owner.uid == 0 else "tcp"
    assert transports(switch, ports) == {"plain": plain, "epoll_edge_before": plain}
    compare(
        switch,
        "streams.py",
        "mebibyte_first",
        "ten_thousand_bytes_first",
        "thousand_hundreds_first",
        "written_before_accept",
        "a_full_pipe_says_so",
    )
