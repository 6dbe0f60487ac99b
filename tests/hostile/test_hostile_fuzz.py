"""The trap handlers fed with any calls whatever (fuzz.py): each is answered once, nothing escapes, nothing is left."""

import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appswitch.model.address import pack
from appswitch.model.service import Service
from appswitch.table import store
from hostile.fuzz import Bench, Step, play, service, step


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


@given(rng=st.randoms(use_true_random=False), count=st.integers(1, 40))
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
def test_any_calls(bench: Bench, rng: random.Random, count: int) -> None:
    arena = bench.inhabitant.arena
    bench.play([*service(rng, arena), *(step(rng, arena) for _ in range(count))])


def test_descriptors_come_back(bench: Bench) -> None:
    for seed in range(20):
        play(bench, seed, 60)
    # what a warm worker keeps: sockets to ask the kernel with
    before = bench.descriptors()
    for seed in range(20, 50):
        play(bench, seed, 60)
    assert bench.descriptors() <= before + 10


def test_long_time_outs_of_interrupted_calls_do_not_add_up(bench: Bench) -> None:
    """More than the kernel lets anybody wait, again and again."""
    listen = Step(0, "listen", -1, None, [5], bytes(16), make="timed")
    wait = Step(0, "accept", -1, None, [0, 0], bytes(16))
    bench.play([listen, *[wait] * 3000])
    assert len(bench.worker.events._timers) < 2000


def test_the_table_is_full(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """listen() fails as it may, and what refused it is told once; there is room again when something has gone."""
    monkeypatch.setattr(store, "MAP_SIZE", 1 << 18)
    small = Bench()
    try:
        written = fill(small.worker.table)
        listen = Step(0, "listen", -1, None, [5], bytes(16), make="bound")
        said = small.play([listen] * 12, faults=12)  # a few may find a place between others
        assert said[-5:] == ["error ENOBUFS"] * 5
        assert caplog.text.count("the service table cannot be written") == 1
        assert "Traceback" not in caplog.text
        for row in written[: len(written) // 2]:
            small.worker.table.delete_services([row])
        assert small.play([listen]) == ["value 0"]
    finally:
        small.close()


def fill(table: store.Table) -> list[Service]:
    """Write until it takes no more."""
    written = []
    for instance in range(10_000):
        try:
            table.put_service(a_row(instance))
        except OSError:
            return written
        written.append(a_row(instance))
    raise AssertionError("it takes everything")


def a_row(instance: int) -> Service:
    return Service(
        vip=pack("10.99.0.9"), port=80, instance=instance, program=1 << 30, name=f"name-{instance}", tags=(),
        bound=bytes(16), dual=True, listener=f"l/{instance}", real=("", 0), balance="round-robin", transport="auto",
        since=float(instance), uid=0, cookie=instance,
    )  # fmt: skip
