"""Whichever process of the switch is killed, and whenever: nothing that programs may rely on is lost.

`make soak` runs this with a thousand kills (--kills), and prints what it has seen.
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from service.loads import Loads, cluster_of_one, roles, status
from support import modes
from support.program import wait_until
from support.switch import Switch

#: A process that dies ten times within ten seconds is started a second later: no role is killed that often.
_SPELL, _OF_ONE_ROLE = 10.0, 8

MODES = [mode for mode in modes.possible() if mode.name != "user-root"]


@pytest.mark.timeout(0)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_kills_at_any_moment(
    new_switch: Callable[..., Switch], python: str, public: Path, pytestconfig: pytest.Config
) -> None:
    seed = pytestconfig.getoption("--seed") or random.randrange(1 << 32)
    switch = new_switch()
    switch.up("--workers", "2", *cluster_of_one())
    with closing(Loads(switch, python, public)) as loads:
        killed, slowest = kill_at_random(switch, random.Random(seed), pytestconfig.getoption("--kills") // len(MODES))
        told = f"seed {seed}: {dict(killed)}, supervisors and keepers replaced within {slowest:.2f} s"
        # A supervisor that is killed itself may not have heard yet of another's death.
        assert 0 < status(switch)["restarts"] <= killed.total(), told
        print(f"{told}\n{loads.finish(pytestconfig.getoption('--within'))}")


def kill_at_random(switch: Switch, rng: random.Random, kills: int) -> tuple[Counter[str], float]:
    """(how often each role was killed, the longest time in seconds until another supervisor or keeper was there).

    Those two are each other's: the next is killed when both are there.
    """
    killed: Counter[str] = Counter()
    recent: list[tuple[float, str]] = []
    slowest = 0.0
    while killed.total() < kills:
        now = roles(switch)
        role = rng.choice(sorted(now))
        time.sleep(rng.uniform(0, 0.3))
        recent = [item for item in recent if item[0] > time.monotonic() - _SPELL]
        if [role for _, role in recent].count(role) >= _OF_ONE_ROLE:
            continue
        moment = time.monotonic()
        try:
            os.kill(now[role], signal.SIGKILL)
        except ProcessLookupError:
            continue
        killed[role] += 1
        recent.append((moment, role))
        if role in ("supervisor", "keeper"):
            others = {role: pid for role, pid in now.items() if role in ("supervisor", "keeper")}
            wait_until(lambda: _replaced(switch, role, others), lambda: f"another {role}")  # noqa: B023
            slowest = max(slowest, time.monotonic() - moment)
    return killed, slowest


def _replaced(switch: Switch, role: str, before: dict[str, int]) -> bool:
    now = roles(switch)
    return now.get(role, before[role]) != before[role] and before.keys() <= now.keys()
