"""`appswitch run --user`: root starts a program as another user, whose it then is in every respect."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from appswitch.linux import addresses
from support import modes
from support.modes import MYSELF, ORDINARY, Person
from support.program import wait_until
from support.switch import Switch

NewSwitch = Callable[..., Switch]

pytestmark = pytest.mark.skipif(MYSELF.uid != 0, reason="only root can give programs to others")
WHO = f"{ORDINARY.uid}:{ORDINARY.gid}"
SERVER = """
import socket
listener = socket.create_server(("", 80))
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    connection.send(b"here")
"""
CLIENT = "import socket, sys; print(socket.create_connection((sys.argv[1], int(sys.argv[2]))).recv(9))"


def only(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("mode", [mode for mode in modes.possible() if mode.name in names], ids=str)


@only("root")
def test_it_is_that_users_program(switch: Switch, python: str) -> None:
    """The switch's socket has mode 0600: it is root who asks. Name, service and connections are the user's."""
    look = "id -u; id -g; echo $HOME $USER; grep -E 'Cap(Eff|Prm|Amb)' /proc/self/status; readlink /proc/self/ns/user"
    said = switch.check(["sh", "-c", look], options=["--user", WHO], status=0).stdout.split()
    assert said[:3] == [str(ORDINARY.uid), str(ORDINARY.gid), "/"]
    assert said[3:9:2] == ["CapPrm:", "CapEff:", "CapAmb:"]
    assert not any(int(digits, 16) for digits in said[4:10:2])
    assert said[9] != Path("/proc/self/ns/user").readlink().as_posix(), "as an ordinary user's programs are"
    server = switch.run([python, "-c", SERVER], name="web", options=["--user", WHO])
    server.wait_output("ready")
    [row] = switch.cli("ps", "-o", "json")
    assert (row["uid"], row["pid"], row["services"]) == (ORDINARY.uid, server.pid, [80])
    called = switch.check([python, "-c", CLIENT, "web", "80"], options=["--user", "daemon"], status=0)
    assert called.stdout == "b'here'\n"
    refused = switch.check(["true"], name="web", options=["--user", "daemon"], status=125)
    assert f"belongs to a running program of user {ORDINARY.uid}" in refused.stderr
    switch.check(["true"], name="web", options=["--user", WHO], status=0)


@only("root")
def test_root_publishes_low_ports_for_a_user(switch: Switch) -> None:
    publish = ["--expose", "127.0.0.77:997:80"]
    switch.check(["true"], name="web", options=["--user", WHO, *publish], status=0)
    refused = switch.check(["true"], name="web", options=publish, user=ORDINARY, status=125)
    assert "does not admit" in refused.stderr


@only("root")
def test_names_and_groups_come_from_passwd(switch: Switch) -> None:
    look = ["sh", "-c", "id; echo $HOME $USER $LOGNAME $SHELL"]
    identity, environment = switch.check(look, options=["--user", "daemon:tty"], status=0).stdout.splitlines()
    assert identity == "uid=1(daemon) gid=5(tty) groups=5(tty)"
    assert environment == "/usr/sbin daemon daemon /usr/sbin/nologin"


@only("root")
def test_outside_it_is_the_user_who_connects_or_nobody(switch: Switch, python: str) -> None:
    # Not those of `lo`, where other tests have some for a while.
    own = [found.address for found in addresses.assigned() if found.interface != "lo" and ":" not in found.address]
    if not own:
        pytest.skip("this host has no IPv4 address besides loopback")
    with socket.create_server((own[0], 0)) as listener:
        address, port = listener.getsockname()
        words = [python, "-c", CLIENT, address, str(port)]
        refused = switch.check(words, options=["--user", WHO, "--egress", "deny"], status=1)
        assert "PermissionError" in refused.stderr
        program = switch.run(words, options=["--user", WHO, "--egress", "allow"])
        connection, peer = listener.accept()
        with connection:
            assert owner_of(peer) == ORDINARY.uid
            connection.send(b"from host")
        assert program.wait() == 0
        assert program.output() == "b'from host'\n"


def owner_of(address: tuple[str, int]) -> int:
    """The user to whom this host's end of a TCP connection belongs (proc(5), /proc/net/tcp)."""
    local = f"{int.from_bytes(socket.inet_aton(address[0]), 'little'):08X}:{address[1]:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    return next(int(words[7]) for words in lines if words[1] == local)


@only("user-own")
def test_under_that_users_own_switch_too_but_no_others(switch: Switch) -> None:
    said = switch.check(["id", "-u"], user=MYSELF, options=["--user", WHO], status=0).stdout
    assert said == f"{ORDINARY.uid}\n"
    refused = switch.check(["true"], user=MYSELF, options=["--user", "daemon"], status=125)
    assert "may not serve a program of user 1:" in refused.stderr


@only("root")
def test_what_the_user_may_not_execute_is_not(switch: Switch, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("#!/bin/sh\n")
    secret.chmod(0o700)
    done = switch.check([str(secret)], options=["--user", WHO])
    assert done.returncode in (126, 127)
    assert done.stderr.startswith(f"appswitch: {secret}: not ")
    wait_until(lambda: switch.cli("ps", "-o", "json") == [], lambda: "no program")


@only("root", "user-root")
def test_others_are_refused_and_so_is_nobody(new_switch: NewSwitch, python: str) -> None:
    switch = new_switch()
    refused = switch.check(["true"], user=ORDINARY, options=["--user", WHO], status=125)
    assert refused.stderr == (
        "appswitch: only root can run a program as another user: leave --user out, or run this as root\n"
    )
    refused = switch.check(["true"], user=MYSELF, options=["--user", "no-such-user"], status=125)
    assert refused.stderr.startswith("appswitch: --user: there is no user 'no-such-user': ")
    assert not switch.run_dir.exists(), "no switch was started for that"


@only("user-root")
def test_nor_does_the_switch_take_an_ordinary_users_word(switch: Switch) -> None:
    script = (
        "import socket, sys\nfrom appswitch.switch import wire\nsock = socket.socket(socket.AF_UNIX)\n"
        "sock.connect(sys.argv[1])\nwire.send(sock, {'op': 'register', 'user': int(sys.argv[2])})\n"
        "print(wire.receive(sock)['error'])"
    )
    interpreter = str(Path(switch.command_line([])[0]).with_name("python"))
    for user in (0, ORDINARY.uid):
        argv = [interpreter, "-c", script, str(switch.run_dir / "control.sock"), str(user)]
        program = switch.start(argv, "forger", Person(ORDINARY.uid, ORDINARY.gid))
        assert program.wait() == 0, program
        assert program.output() == "only root can run a program as another user: leave --user out\n"
