"""Random programs of socket calls see the same natively and under the switch, over either transport (campaign.py)."""

import hypothesis
from hypothesis import HealthCheck, Phase

from .found import FOUND
from .lanes import Difference, Lanes
from .programs import Program, programs

FEW, SEED = 50, 1
"""Programs a mode in a run of the suite, and from where they are drawn."""


def play(lanes: Lanes, examples: int, seed: int) -> dict[tuple[str, ...], Difference]:
    """Play so many programs, the same for the same seed; the differences found, one of a kind."""
    found: dict[tuple[str, ...], Difference] = {}

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(programs)
    def draw(program: Program) -> None:
        for difference in lanes.differences(program):
            found.setdefault(difference.kind, difference)

    draw()
    return found


def check(told: list[str]) -> None:
    assert not told, "\n\n".join([f"{len(told)} differences", *told])


def test_programs_are_answered_as_natively(lanes: Lanes) -> None:
    found = play(lanes, FEW, SEED)
    check([f"(seed {SEED}) {lanes.shrink(difference)}" for difference in found.values()])


def test_what_was_found_is_answered_as_natively(lanes: Lanes) -> None:
    check([lanes.shrink(difference) for program in FOUND.values() for difference in lanes.differences(program)])
