"""What happens on a full disk: run in a mount namespace of its own with the command and a directory for the disk.

Fails by an exception; prints what was seen on the way.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from appswitch.table.store import Table

COMMAND, DISK = sys.argv[1], Path(sys.argv[2])
RUN_DIR, FILLER = DISK / "run", DISK / "filler"
DEADLINE = 90.0
started: "list[subprocess.Popen[str]]" = []
PATIENT = """
import socket, sys
listener = socket.create_server(("", 80))
kept = []
print("ready", flush=True)
for line in sys.stdin:
    if line == "serve\\n":
        listener.accept()[0].send(b"here")
    else:
        try:
            kept.append(socket.create_server(("", int(line))))
            print("listens", flush=True)
        except OSError as error:
            print(error.errno, flush=True)
"""
CALL = """
import socket
try:
    print(socket.create_connection(("web", 80)).recv(9).decode())
except OSError as error:
    print(error.errno)
"""


def appswitch(*words: str) -> tuple[int, str, str]:
    done = subprocess.run([COMMAND, *words], capture_output=True, text=True, timeout=DEADLINE)
    print(words, done.returncode, done.stdout[:200], done.stderr, flush=True)
    return done.returncode, done.stdout, done.stderr


def fill() -> None:
    """Take all the room that is left."""
    with FILLER.open("ab", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


def free() -> None:
    FILLER.unlink()


def wait_until(look: Any) -> None:
    deadline = time.monotonic() + DEADLINE
    while not look():
        assert time.monotonic() < deadline, look
        time.sleep(0.05)


def status() -> dict[str, Any]:
    return dict(json.loads(appswitch("status", "-o", "json")[1]))


def recovered(restarts: int, processes: int) -> bool:
    code, said, _ = appswitch("status", "-o", "json")
    return code == 0 and json.loads(said)["restarts"] >= restarts and len(json.loads(said)["processes"]) == processes


def start(*words: str) -> "subprocess.Popen[str]":
    program = subprocess.Popen([COMMAND, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    started.append(program)
    assert program.stdout.readline() == "ready\n"
    return program


def say(program: "subprocess.Popen[str]", line: str) -> None:
    assert program.stdin is not None
    program.stdin.write(line + "\n")
    program.stdin.flush()


def hear(program: "subprocess.Popen[str]") -> str:
    assert program.stdout is not None
    return program.stdout.readline().strip()


def nothing_is_begun() -> None:
    """No room for a switch: told in a sentence, and nothing is left."""
    for room in (0, 100_000, 1_200_000):
        FILLER.write_bytes(bytes(room))
        with (DISK / "rest").open("wb", buffering=0) as rest:
            try:
                while rest.write(bytes(4096)):
                    pass
            except OSError:
                pass
        free()
        if room == 0:
            FILLER.touch()
        for words, code in ((("up",), 1), (("run", "--", "true"), 125)):
            done = appswitch(*words)
            assert done[0] == code
            sentence = f"appswitch: cannot furnish the run directory {RUN_DIR} (No space left on device): make room"
            assert done[2].startswith(sentence)
            assert done[2].count("\n") == 1
            assert not RUN_DIR.exists()
        (DISK / "rest").unlink()


def it_lives_on_a_full_disk() -> None:
    """All that a small switch needs was put aside when it came up."""
    server = start("run", "--name", "web", "--tag", "group=1", "--", sys.executable, "-c", PATIENT)
    fill()
    say(server, "serve")
    assert appswitch("run", "--tag", "group=1", "--", sys.executable, "-c", CALL)[1] == "here\n"
    assert appswitch("run", "--tag", "group=2", "--", sys.executable, "-c", CALL)[1] == "13\n"
    assert len(json.loads(appswitch("denials", "-o", "json")[1])) == 1
    say(server, "81")
    assert hear(server) == "listens"
    for count, role in enumerate(("worker-0", "supervisor"), 1):
        before = {one["role"]: one["pid"] for one in status()["processes"]}
        os.kill(before[role], signal.SIGKILL)
        wait_until(lambda count=count, before=before: recovered(count, len(before)))
        say(server, "serve")
        assert appswitch("run", "--tag", "group=1", "--", sys.executable, "-c", CALL)[1] == "here\n"
    assert status()["counters"]["faults"] == 0
    server.kill()
    server.wait()
    wait_until(lambda: status()["programs"] == 0)
    free()


def a_full_table_takes_no_more_until_there_is_room() -> None:
    server = start("run", "--name", "web", "--tag", "group=1", "--", sys.executable, "-c", PATIENT)
    short = start("run", "--name", "short", "--", sys.executable, "-c", PATIENT)
    fill()
    table, taken = Table(str(RUN_DIR / "table")), []
    for size in (100_000, 4000, 10):
        try:
            while True:
                table.put_program(1_000_000 + len(taken), {"filler": "x" * size})
                taken.append(1_000_000 + len(taken))
        except OSError as error:
            print("the table is full:", error, len(taken), flush=True)
    done = appswitch("run", "--", "true")
    assert done[0] == 125
    assert done[2].startswith("appswitch: the switch cannot write the program down (")
    assert f"): make room in {RUN_DIR}, then try again" in done[2]
    listens = {80}
    for port in range(100, 1000):
        say(server, str(port))
        heard = hear(server)
        if heard == "105":  # ENOBUFS
            break
        assert heard == "listens", "there was still a page to be used again"
        listens.add(port)
    else:
        raise AssertionError("the table is not full")
    short.kill()
    short.wait()
    wait_until(lambda: status()["programs"] == 1)
    free()
    assert appswitch("run", "--", "true")[0] == 0
    say(server, "81")
    assert hear(server) == "listens"
    wait_until(lambda: len(table.programs()) == len(taken) + 1)
    assert {row.port for row in table.services()} == listens | {81}
    table.close()
    server.kill()
    server.wait()
    wait_until(lambda: status()["programs"] == 0)


subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m,mode=755", "none", str(DISK)], check=True)
os.environ["APPSWITCH_RUN_DIR"] = str(RUN_DIR)
nothing_is_begun()
try:
    assert appswitch("up", "--workers", "1")[0] == 0
    it_lives_on_a_full_disk()
    a_full_table_takes_no_more_until_there_is_room()
    log = (RUN_DIR / "switch.log").read_text()
    print(log)
    assert "Traceback" not in log
finally:
    for one in started:
        one.kill()
    appswitch("down", "--force")
assert not RUN_DIR.exists()
