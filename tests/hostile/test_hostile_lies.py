"""Descriptor numbers, addresses and lengths that lie: the kernel's own errors, nothing lost, no fault counted."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.modes import MODES
from support.program import wait_until
from support.switch import Switch

#: Said on purpose: netfilter's options are refused unasked; TCP stops listening (docs/transparency.md); an epoll has
#: an ioctl of its own.
OTHERWISE = {
    "setsockopt connected 0/2147483647": "EPERM",
    "setsockopt listening 0/2147483647": "EPERM",
    "connect listening from readonly": "EISCONN",
    "ioctl of epoll": "ENOTTY",
}
TIMES = 300
"""Of the calls that lose a descriptor each, if any is lost."""


@pytest.fixture(scope="module")
def lies(public: Path) -> Path:
    target = public / "lies.py"
    shutil.copyfile(Path(__file__).parent / "src" / "lies.py", target)
    target.chmod(0o644)
    return target


@pytest.fixture(scope="module")
def natively(lies: Path, python: str) -> dict[str, Any]:
    line = [python, "-S", str(lies), str(TIMES)]
    done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("mode", [MODES[1]], ids=str)
def test_lies(switch: Switch, lies: Path, python: str, natively: dict[str, Any]) -> None:
    program = switch.run([python, "-S", lies, str(TIMES)], ip="10.99.0.1", stdin=subprocess.PIPE)
    found = json.loads(program.wait_output(r"\{.*\}\n").group())
    changing = "while memory comes and goes"
    # whatever is there for a moment may also be a length or a family that is none
    assert set(found.pop(changing)) <= {"done", "EFAULT", "EINVAL"}
    expected = {label: told for label, told in natively.items() if label != changing} | OTHERWISE
    assert {label: told for label, told in found.items() if told != expected[label]} == {}
    assert found.keys() == expected.keys()
    status = switch.cli("status", "-o", "json")
    assert status["counters"]["faults"] == 0
    assert status["restarts"] == 0
    # The program is still there, and with it what belongs to it; what its calls have borrowed is not.
    [worker] = [process["pid"] for process in status["processes"] if process["role"] == "worker-0"]
    wait_until(lambda: left(worker) < 60, lambda: f"worker {worker} still has {left(worker)} descriptors")


@pytest.mark.parametrize("mode", [MODES[1]], ids=str)
def test_listeners_opened_and_closed_in_a_hurry_do_not_pile_up(switch: Switch, python: str) -> None:
    program = switch.run([python, "-S", "-c", HURRY], ip="10.99.0.1", stdin=subprocess.PIPE)
    program.wait_output("round 0\n")
    [worker] = [each["pid"] for each in switch.cli("status", "-o", "json")["processes"] if each["role"] == "worker-0"]
    most = before = left(worker)
    # Again if nobody looked meanwhile, as on a busy machine.
    for number in range(1, 20):
        program.stdin.write(b"\n")
        program.stdin.flush()
        while f"round {number}\n" not in program.output():
            assert program.returncode is None, program
            most = max(most, left(worker))
        if most > before:
            break
    # Of 3000: some at a time, for it is found out by looking now and then that one was closed.
    assert before < most < 700


HURRY = """
import socket
for number in range(20):
    print("round", number, flush=True)
    input()
    for _ in range(3000):
        with socket.socket() as sock:
            sock.listen()
"""


def left(worker: int) -> int:
    return len(os.listdir(f"/proc/{worker}/fd"))
