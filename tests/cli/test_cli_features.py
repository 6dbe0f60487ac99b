"""A kernel without one of the features: either everything goes another way, or one sentence says why not."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from appswitch.linux import features
from appswitch.linux.features import FEATURES
from support import modes
from support.program import wait_until
from support.switch import Switch

NewSwitch = Callable[..., Switch]

one_mode = pytest.mark.parametrize("mode", modes.possible()[:1], ids=str)
ORDINARY_MODES = [mode for mode in modes.possible() if mode.program_owner.uid != 0]
NEEDED = [name for name, feature in FEATURES.items() if feature.needed]
DISPENSABLE = [
    features.SYNC_WAKE_UP,
    features.LANDLOCK,
    features.PASS_RIGHTS,
    features.PIDFD_THREAD,
    features.TUN,
    features.UDP_OFFLOAD,
]

SERVER = """
import socket
listener = socket.create_server(("", 80))
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    connection.send(connection.recv(100))
"""
# Names, and connects of several threads, one after the other and by epoll.
CLIENT = """
import asyncio, socket, threading
def call(kind):
    with socket.create_connection(("web", 80)) as connection:
        connection.send(kind)
        print(connection.recv(100).decode(), flush=True)
call(b"first")
thread = threading.Thread(target=call, args=(b"thread",))
thread.start()
thread.join()
async def polling():
    reader, writer = await asyncio.open_connection("web", 80)
    writer.write(b"loop")
    print((await reader.read(100)).decode(), flush=True)
asyncio.run(polling())
"""


def works(switch: Switch, python: str) -> None:
    switch.run([python, "-c", SERVER], name="web").wait_output("ready")
    assert switch.check([python, "-c", CLIENT], status=0).stdout.split() == ["first", "thread", "loop"]


def told(switch: Switch) -> dict[str, str]:
    """What `status` says is missing."""
    return {row["feature"]: row["without"] for row in switch.cli("status", "-o", "json")["missing"]}


@one_mode
@pytest.mark.parametrize("name", DISPENSABLE)
def test_without_it_everything_goes_another_way(new_switch: NewSwitch, python: str, name: str) -> None:
    switch = new_switch(env={features.ENVIRONMENT: name})
    said = switch.control("up", *switch.mode.up_options, status=0).stdout
    assert (name in said) == FEATURES[name].guard, "what holds hostile programs is told at once"
    works(switch, python)
    assert told(switch)[name] == FEATURES[name].without


@pytest.mark.parametrize("mode", ORDINARY_MODES[:1], ids=str)
def test_without_all_of_them_too(new_switch: NewSwitch, python: str) -> None:
    switch = new_switch(env={features.ENVIRONMENT: ",".join(DISPENSABLE)})
    switch.up()
    works(switch, python)
    assert set(told(switch)) >= set(DISPENSABLE)
    lines = switch.cli("status").splitlines()
    assert all(any(line.startswith(f"no {name} ") for line in lines) for name in DISPENSABLE)


def files(pid: int) -> set[str]:
    """What a process has open."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed just now
            found.add(os.readlink(link))
    return found


@pytest.mark.skipif(not os.access("/dev/net/tun", os.W_OK), reason="this user can have no TUN devices anyway")
@one_mode
def test_a_device_is_tun_or_veth_as_is_said(new_switch: NewSwitch) -> None:
    for left_out in ("", features.TUN):
        switch = new_switch(env={features.ENVIRONMENT: left_out})
        switch.up()
        program = switch.run(["sh", "-c", "echo ready; sleep 60"])
        program.wait_output("ready")
        [relay] = [p["pid"] for p in switch.cli("status", "-o", "json")["processes"] if p["role"] == "relay"]
        if left_out:
            assert "/dev/net/tun" not in files(relay)
        else:  # the relay hears of a program when the worker does, and is not waited for
            wait_until(lambda pid=relay: "/dev/net/tun" in files(pid), lambda: "the program's device")


@one_mode
@pytest.mark.parametrize("name", NEEDED)
def test_without_what_is_needed_nothing_is_started(new_switch: NewSwitch, name: str) -> None:
    switch = new_switch(env={features.ENVIRONMENT: name})
    sentence = f"appswitch: this kernel has no {name} ({FEATURES[name].since}): {FEATURES[name].without}\n"
    assert switch.control("up", status=1).stderr == sentence
    if name == NEEDED[0]:
        assert switch.check(["true"], status=125).stderr == sentence
    assert not switch.run_dir.exists()


@pytest.mark.parametrize("mode", ORDINARY_MODES, ids=str)
def test_without_user_namespaces_only_roots_programs_run(new_switch: NewSwitch) -> None:
    switch = new_switch(env={features.ENVIRONMENT: features.USER_NAMESPACES})
    sentence = "cannot make a user namespace: this kernel has none (CONFIG_USER_NS); run appswitch as root"
    if switch.mode.switch_owner.uid == 0:
        switch.up()
        assert told(switch)[features.USER_NAMESPACES].startswith("only root's programs can be run: ")
        switch.check(["true"], user=switch.mode.switch_owner, status=0)
    assert switch.check(["true"], status=125).stderr == f"appswitch: {sentence}\n"
    assert switch.run_dir.exists() == (switch.mode.switch_owner.uid == 0)


@one_mode
def test_without_any_kind_of_device_no_program_is_left(new_switch: NewSwitch) -> None:
    switch = new_switch(env={features.ENVIRONMENT: f"{features.TUN},{features.VETH}"})
    switch.up()
    done = switch.check(["true"], status=125)
    assert done.stderr.startswith("appswitch: cannot make a network device (no TUN device (")
    assert done.stderr.endswith("see that this kernel has its tun or its veth module\n")
    assert len(done.stderr.splitlines()) == 1
    assert switch.cli("ps", "-o", "json") == []


@one_mode
def test_a_feature_that_there_is_none_of_is_told(new_switch: NewSwitch) -> None:
    switch = new_switch(env={features.ENVIRONMENT: "landlock,telepathy"})
    for done in (switch.control("up", status=1), switch.check(["true"], status=125)):
        assert done.stderr.startswith("appswitch: APPSWITCH_WITHOUT names 'telepathy', which is none of addfd-send, ")
    assert not switch.run_dir.exists()


@one_mode
def test_no_switch_inside_a_program(switch: Switch) -> None:
    command = switch.command_line([])[0]
    done = switch.check([command, "up", "--run-dir", str(switch.work / "inner")], status=1)
    assert done.stderr.startswith("appswitch: a switch cannot be of use inside a program that is under AppSwitch")
    assert len(done.stderr.splitlines()) == 1
    assert not (switch.work / "inner").exists()
