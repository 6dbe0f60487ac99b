"""Who waits for the table's write lock has it before a large change goes on."""

import dataclasses
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from appswitch.model.identity import Claim
from appswitch.model.service import Service
from appswitch.table import turns
from appswitch.table.claims import AT_ONCE as CLAIMS_AT_ONCE
from appswitch.table.store import AT_ONCE, Table

LARGE = 20
#: Announces itself, says so, and asks for the lock only when it is told to: a writer that is slow to wake up. Prints
#: the number of its transaction.
SLOW = """
import sys
from appswitch.table.store import Table
table = Table(sys.argv[1])
turns = table._writer._turns
turns.announce()
print("waits", flush=True)
sys.stdin.readline()
with table._env.begin(write=True) as txn:
    turns.withdraw()
    txn.put(b"12345678", b"", db=table._programs)
    print(txn.id(), flush=True)
"""
#: Writes N times; prints by how many transactions of others it was overtaken most, since it said that it waits.
OFTEN = """
import sys
from appswitch.table import turns
from appswitch.table.store import Table
table = Table(sys.argv[1])
announce, seen = turns.Turns.announce, []
turns.Turns.announce = lambda self: (announce(self), seen.append(table.version()))
most = 0
for number in range(int(sys.argv[2])):
    with table._writer.transaction() as txn:
        txn.put(b"\\0" * 7 + b"\\1", b"", db=table._programs)
        most = max(most, txn.id() - seen[-1] - 1)
    if not number:
        print("writes", flush=True)
print(most, flush=True)
"""
#: Dies while it has the lock.
DIES = """
import os, signal, sys
from appswitch.table.store import Table
table = Table(sys.argv[1])
with table._writer.transaction() as txn:
    txn.put(b"12345678", b"", db=table._programs)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def table(tmp_path):
    table = Table(str(tmp_path / "table"))
    yield table
    table.close()


@contextmanager
def another(code, tmp_path, *words):
    """A process that runs this on the same table."""
    command = [sys.executable, "-c", code, str(tmp_path / "table"), *map(str, words)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def service(number):
    vip = number.to_bytes(16, "big")
    real = ("192.0.2.1", 40000)
    return Service(vip, 80, number, 1, "web", (), vip, True, "", real, "random", "auto", 1.0, 0, 0, host="b")


def change(table, transactions=LARGE):
    """A large one."""
    table.replace_host_rows("b", [service(number) for number in range(transactions * AT_ONCE)])


def patient(monkeypatch, meanwhile):
    """A large change waits as long as it takes, and this happens when it does so for the first time."""
    waited = []
    sleep = turns.time.sleep

    def once(seconds):
        if not waited:
            meanwhile()
        waited.append(seconds)
        sleep(seconds)

    monkeypatch.setattr(turns, "PATIENCE", 60.0)
    monkeypatch.setattr(turns.time, "sleep", once)
    return waited


def serve(process):
    """Have the slow writer go on; the number of its transaction."""
    process.stdin.write("\n")
    process.stdin.flush()
    return int(process.stdout.readline())


@pytest.mark.parametrize(
    ("change", "transactions"),
    [
        (change, LARGE),
        (lambda table: table.replace_host_rows("c", []), 3),
        (lambda table: table.apply_host_claims("b", claimed("b", 3 * CLAIMS_AT_ONCE)), 3),
        (lambda table: table.set_own_name("me"), 4),
        (lambda table: table.set_members({f"m{n}": {} for n in range(3 * AT_ONCE)}), 3),
    ],
)
def test_a_large_change_waits_for_who_waits(table, tmp_path, monkeypatch, change, transactions):
    table.replace_host_rows("c", [dataclasses.replace(service(n), host="c") for n in range(3 * AT_ONCE)])
    for number in range(2 * CLAIMS_AT_ONCE):
        vip = number.to_bytes(16, "big")
        table.set_claims(vip, [Claim(f"n{number}", vip, 1)])
    with another(SLOW, tmp_path) as process:
        assert process.stdout.readline() == "waits\n"
        before, served = table.version(), []
        assert patient(monkeypatch, lambda: served.append(serve(process))) == []
        change(table)
    # set_own_name's own row goes first
    assert served in ([before + 1], [before + 2])
    assert table.version() == before + transactions + 1


def claimed(host, count):
    vips = [(1 << 64 | n).to_bytes(16, "big") for n in range(count)]
    return {vip: [Claim(f"{host}{n}", vip, 1, host=host)] for n, vip in enumerate(vips)}


def test_without_the_announcement_it_would_be_overtaken_by_all_of_it(table, tmp_path, monkeypatch):
    monkeypatch.setattr(turns.Turns, "others_wait", lambda self: False)
    with another(SLOW, tmp_path) as process:
        assert process.stdout.readline() == "waits\n"
        before = table.version()
        change(table)
        assert serve(process) == before + LARGE + 1


def test_a_writer_is_overtaken_once_at_most(table, tmp_path, monkeypatch):
    """By the transaction that began before it said that it waits, and the one whose author had looked just before."""
    monkeypatch.setattr(turns, "PATIENCE", 60.0)
    with another(OFTEN, tmp_path, 300) as process:
        assert process.stdout.readline() == "writes\n"
        while process.poll() is None:
            change(table)
            table.replace_host_rows("b", [])
        assert int(process.stdout.readline()) <= 1


def test_who_is_killed_waiting_waits_no_more(table, tmp_path, monkeypatch):
    with another(SLOW, tmp_path) as process:
        assert process.stdout.readline() == "waits\n"

        def kill():
            process.kill()
            process.wait()

        waited = patient(monkeypatch, kill)
        change(table)
    assert len(waited) == LARGE  # a pause before each transaction, and no more


def test_who_is_killed_with_the_lock_leaves_it(table, tmp_path):
    before = table.version()
    with another(DIES, tmp_path) as process:
        assert process.wait() == -signal.SIGKILL
    change(table)
    assert table.version() == before + LARGE
    assert table.programs() == {}


def test_who_never_comes_for_the_lock_holds_nobody_up_for_long(table, tmp_path, monkeypatch):
    """Stopped by SIGSTOP, perhaps. Other writers do not wait for it at all."""
    now, waited = [0.0], []

    def sleep(seconds):
        now[0] += seconds
        waited.append(seconds)

    monkeypatch.setattr(turns.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(turns.time, "sleep", sleep)
    with another(SLOW, tmp_path) as process:
        assert process.stdout.readline() == "waits\n"
        table.put_program(1, {})
        assert waited == []
        change(table, 3)
        assert 3 * turns.PATIENCE <= sum(waited) < 3 * (turns.PATIENCE + 2 * turns.PAUSE)
    assert len(table.host_keys("b")) == 3 * AT_ONCE
