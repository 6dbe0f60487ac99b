"""Those who would pass for the switch, or hand something in: other processes, other users, the other program."""

import json
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from appswitch.linux.arch import NUMBERS
from appswitch.model.address import pack
from appswitch.trap import delivery
from appswitch.trap.sockets import UNIX
from service.acting import Actor
from support.modes import MYSELF, ORDINARY_ID, Person
from support.needs import need
from support.program import Program
from support.switch import Switch

Start = Callable[..., Actor]

SOURCES = Path(__file__).with_name("src")
STRANGER = Person(ORDINARY_ID + 1, ORDINARY_ID + 1)

NOTE = delivery._NOTE.pack(UNIX, pack("10.99.9.9"), 4711, pack("10.99.0.3"), 80, 0).hex()
"""What the switch writes beside a connection that it delivers."""

TAKE = "l.accept()[0].recv(10).decode()"


def strangers(switch: Switch) -> int:
    return int(switch.cli("status", "-o", "json")["strangers"])


# A forged delivery ------------------------------------------------------------------------------------------


@pytest.fixture
def server(shared: Switch, actor: Start) -> tuple[Actor, Path]:
    """A server, and its listener's Unix socket."""
    made = actor(ip="10.99.0.3")
    made("l = listen(80)")
    [row] = shared.services("10.99.0.3", 80)
    return made, shared.run_dir / row["listener"]


def forge(switch: Switch, python: str, person: Person, path: Path, *more: str) -> Program:
    script = (SOURCES / "forge.py").read_text()
    return switch.start([python, "-S", "-c", script, str(path), NOTE, *more], "forge", person)


@pytest.mark.parametrize("waits", ["in accept", "in poll"])
def test_a_forged_delivery_does_not_reach_the_program(
    shared: Switch, python: str, server: tuple[Actor, Path], actor: Start, waits: str
) -> None:
    program, path = server
    client, before = actor(), strangers(shared)
    if waits == "in accept":
        program.begin(TAKE)
    else:
        program("l.setblocking(False)")
        program.begin("accepted = None; events(l, select.POLLIN)")
    forger = forge(shared, python, shared.mode.switch_owner, path)
    if waits == "in accept":
        assert (forger.wait(), forger.errors().strip()) == (1, "closed")
        assert program.still_busy(0.1)
    else:
        # Poll tells of it, as of a connection that was reset before accept(); accept() gives nothing.
        program.end()
        assert program.errno("l.accept()") == "EAGAIN"
        assert (forger.wait(), forger.errors().strip()) == (1, "closed")
        program("l.setblocking(True)")
        program.begin(TAKE)
    assert strangers(shared) == before + 1
    client("s = call('10.99.0.3', 80); s.sendall(b'good')")
    assert program.end() == "good"


def test_nor_one_from_a_program_under_the_switch(
    shared: Switch, python: str, server: tuple[Actor, Path], actor: Start
) -> None:
    program, path = server
    before = strangers(shared)
    program.begin(TAKE)
    script = (SOURCES / "forge.py").read_text()
    forger = shared.check([python, "-S", "-c", script, path, NOTE])
    if shared.mode.program_owner == shared.mode.switch_owner:
        assert forger.stderr.strip() == "closed"
        assert strangers(shared) == before + 1
    else:
        assert forger.stderr.strip() == "PermissionError"
    assert program.still_busy(0.1)
    actor()("s = call('10.99.0.3', 80); s.sendall(b'good')")
    assert program.end() == "good"


def test_the_users_own_file_system_is_not_guarded_against_the_user(
    shared: Switch, python: str, server: tuple[Actor, Path]
) -> None:
    """Whoever can write the run directory is the switch (docs/security.md); and the forgery above is a good one."""
    program, path = server
    program.begin("(lambda s, where: [s.recv(10).decode(), s.send(b'well'), where])(*l.accept())")
    ring = shared.run_dir / "state" / "pids"
    kept = ring.read_bytes()
    forger = forge(shared, python, shared.mode.switch_owner, path, str(ring))
    assert program.end() == ["evil", 4, ["10.99.9.9", 4711]]
    assert (forger.wait(), forger.errors().strip()) == (1, "taken")
    with ring.open("r+b") as file:
        file.write(kept)


def test_descriptors_are_not_passed_over_a_connection(actor: Start) -> None:
    """Linux ≥ 6.16; a TCP connection carries none either."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.getsockopt(socket.SOL_SOCKET, delivery.SO_PASSRIGHTS)
        except OSError:
            pytest.skip("this kernel has no SO_PASSRIGHTS")
    server, client = actor("takes"), actor(options=["--transport", "unix"])
    server("l = listen(80); l.setblocking(False)")
    client("s = call('takes', 80)")
    # Before it is accepted: it is not.
    assert client("send_fds(s, [b'x'], [0])") == 1
    assert server("events(l, select.POLLIN)")
    assert server.errno("l.accept()") == "EAGAIN"
    assert client("outcome_of(lambda: s.recv(1))") in ("ECONNRESET", "b''")
    # Behind words of its own, and once it is accepted: refused.
    client("t = call('takes', 80); t.sendall(b'words')")
    server("c, _ = take(l)")
    assert client.errno("send_fds(t, [b'x'], [0])") == "EPERM"
    assert server("c.recv(10).decode()") == "words"


# The switch's own doors -------------------------------------------------------------------------------------


@pytest.mark.skipif(MYSELF.uid != 0, reason="only root can be yet another user")
def test_what_another_user_finds_in_the_run_directory(shared: Switch, python: str, server: tuple[Actor, Path]) -> None:
    names = [str(path.relative_to(shared.run_dir)) for path in shared.run_dir.rglob("*")]
    assert {"control.sock", "dns.sock", "switch.log", "state/pids", str(server[1].relative_to(shared.run_dir))} <= set(
        names
    )
    script = (SOURCES / "look_around.py").read_text()
    command = [python, "-S", "-c", script, str(shared.run_dir), *names]

    def look(person: Person) -> set[str]:
        done = subprocess.run(command, check=True, capture_output=True, cwd="/", **person.popen_arguments())
        return set(json.loads(done.stdout))

    expected = set()
    if shared.mode.switch_owner.uid == 0:
        expected.add("resolv.conf")
    if "0666" in shared.mode.up_options:
        expected.add("control.sock")
    assert look(STRANGER) == expected
    found = look(shared.mode.switch_owner)
    # What an earlier test's listener has left may have gone meanwhile.
    assert {name for name in names if (shared.run_dir / name).exists()} <= found <= set(names)


_OTHER_FILTER = f"""
import sys
from appswitch.cli.main import main
from appswitch.linux.bpf import ALLOW, NOTIFY, Assembler
from appswitch.trap import filter

def build():
    asm = Assembler()
    asm.load_nr()
    asm.jump_equal({NUMBERS["kcmp"]}, yes="trap")
    asm.ret(ALLOW)
    asm.label("trap")
    asm.ret(NOTIFY)
    return asm.assemble()

filter.build = build
sys.argv[0] = "appswitch"
sys.exit(main())
"""


def test_a_client_with_another_filter_does_no_harm(
    shared: Switch, appswitch_command: Callable[[Person], Path], python: str
) -> None:
    """The control socket's client may be anybody's program, and trap calls that the switch does not know."""
    before = shared.processes()
    owner = shared.mode.program_owner
    code = (
        "import ctypes, errno; libc = ctypes.CDLL(None, use_errno=True);"
        f"libc.syscall({NUMBERS['kcmp']}, 1, 2, 3, 4, 5); print(errno.errorcode[ctypes.get_errno()])"
    )
    command = [str(appswitch_command(owner).with_name("python")), "-c", _OTHER_FILTER, "run", "--"]
    program = shared.start([*command, python, "-S", "-c", code], "other-filter", owner)
    assert (program.wait(), program.output()) == (0, "ENOSYS\n")
    assert shared.processes() == before


_OTHER_DEVICE = """
import os, sys
from appswitch.cli.main import main
from appswitch.trap import generator

confine = generator.confine

def swapped(plan):
    handover = confine(plan)
    handover.fds[1] = os.open("/dev/zero", os.O_RDWR)
    return handover

generator.confine = swapped
sys.argv[0] = "appswitch"
sys.exit(main())
"""


def test_a_client_with_another_file_for_its_device_is_refused(
    shared: Switch, appswitch_command: Callable[[Person], Path]
) -> None:
    """The relay, which may be root's, would read from it and write to it."""
    owner = shared.mode.program_owner
    command = [str(appswitch_command(owner).with_name("python")), "-c", _OTHER_DEVICE, "run", "--", "true"]
    program = shared.start(command, "other-device", owner)
    assert program.wait() == 125
    assert "descriptors are not as the switch knows them" in program.errors()


# What the other end of a connection can do ------------------------------------------------------------------

_PUSH = """
def push(sock):
    pipe = os.pipe()
    try:
        return sock.sendmsg([b"x"], [(SOL_SOCKET, SCM_RIGHTS, struct.pack("i", pipe[0]))])
    except OSError as error:
        return errno.errorcode[error.errno]

def receive(sock):
    data, ancillary, _, _ = sock.recvmsg(10, 100)
    return [data.decode(), len(ancillary)]
"""


@pytest.mark.skipif(not delivery.Buffers.probe().pass_rights, reason="this kernel has no SO_PASSRIGHTS (< 6.16)")
def test_descriptors_do_not_arrive_over_a_connection(shared: Switch, server: tuple[Actor, Path], actor: Start) -> None:
    program, _ = server
    client = actor(options=("--transport", "unix"))
    for one in (program, client):
        one(_PUSH)
    # Between Unix sockets of its own they do.
    assert client("a, b = socketpair(); ") is None
    assert client("[push(a), receive(b)]") == [1, ["x", 1]]
    client("s = call('10.99.0.3', 80)")
    program("c, _ = take(l)")
    for sender, sock, receiver, other in ((client, "s", program, "c"), (program, "c", client, "s")):
        # The receiver would have them: as on TCP, there is no such option.
        for option in (83, 16, 76, 34):  # SO_PASSRIGHTS, SO_PASSCRED, SO_PASSPIDFD, SO_PASSSEC
            receiver.begin(f"{other}.setsockopt(SOL_SOCKET, {option}, 1)")
            assert receiver.answer().get("errno") in (None, "EOPNOTSUPP", "ENOTSUP", "ENOPROTOOPT", "EINVAL")
        assert sender(f"push({sock})") == "EPERM"
        sender(f"{sock}.send(b'y')")
        assert receiver(f"receive({other})") == ["y", 0]


# A program that is in the way of others ---------------------------------------------------------------------

_BLACK_HOLE = """
ip link set lo up
ip link add v0 type veth peer name v1 || exit 3
ip link set v0 up arp off
ip link set v1 up arp off
echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet
echo 1 > /proc/sys/net/ipv4/conf/v0/route_localnet
ip addr add 10.1.1.1/32 dev v0
ip addr del 127.0.0.1/8 dev lo
ip route add 127.0.0.0/8 dev v0 src 10.1.1.1
exec "$@"
"""

_INTO_IT = """
import errno, socket
sock = socket.socket()
if {native}:
    sock.settimeout(1)
try:
    sock.connect(("127.0.0.1", 999))
except OSError as error:
    print(errno.errorcode.get(error.errno, error), flush=True)
"""


def test_a_namespace_of_its_own_does_not_hold_the_switch_up(shared: Switch, python: str, actor: Start) -> None:
    """Where a program has made 127.0.0.1 swallow everything, the switch connects to nothing on its behalf."""
    need("ip")
    own = [need("unshare"), "--net", *(["--user", "--map-root-user"] if shared.mode.program_owner.uid else [])]
    argv = [*own, "sh", "-c", _BLACK_HOLE, "sh", python, "-S", "-c"]
    native = shared.start([*argv, _INTO_IT.format(native=True)], "native", shared.mode.program_owner)
    if native.wait() == 3:
        pytest.skip("this kernel has no veth devices")
    assert native.output() == "timed out\n", native
    assert shared.check([*argv, _INTO_IT.format(native=False)]).stdout == "ECONNREFUSED\n"


_USE = """
import errno, socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
for step in ("sock.bind(('127.0.0.1', 0))", "sock.listen(1)", "sock.connect(('127.0.0.1', 1))"):
    try:
        eval(step)
        print("done")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


def test_with_a_socket_that_was_handed_in_nothing_is_done_for_it_on_the_host(shared: Switch, python: str) -> None:
    """A descriptor from outside is its holder's to use, as far as the kernel lets it; the switch does not help."""
    with socket.socket() as handed:
        number = handed.fileno()
        done = shared.check([python, "-S", "-c", _USE, str(number)], pass_fds=[number])
        assert done.stdout.split() == ["EINVAL", "EINVAL", "ECONNREFUSED"]
        assert handed.getsockname() == ("0.0.0.0", 0)
