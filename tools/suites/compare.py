"""Outcomes of a module beside those natively: what is different is run again on both sides, and judged."""

from __future__ import annotations

from .exceptions import reasons
from .lanes import NATIVE, Lane, Place
from .outcomes import Outcomes, differences
from .verdicts import Judged, judge

AGAIN = 3


def beside(place: Place, module: str, transport: str, natively: Outcomes, here: Outcomes) -> Judged:
    different = differences(natively, here)
    unlisted = sorted(different.keys() - reasons(transport).keys())
    rounds = AGAIN if unlisted else 0
    return judge(
        Lane(place.mode, transport),
        module,
        natively,
        here,
        different,
        [place.again(module, unlisted, NATIVE) for _ in range(rounds)],
        [place.again(module, unlisted, transport) for _ in range(rounds)],
    )
