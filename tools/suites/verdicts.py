"""What a difference comes to, after the test was run again on both sides. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .exceptions import reasons
from .lanes import Lane
from .outcomes import ABSENT, Outcome, Outcomes


@dataclass
class Judged:
    """The tests of one module in one lane, beside the same natively.

    `listed`: differences that exceptions.py has. `fickle`: that fail natively too, now and then. `once`: that failed
    here and then passed at each go. `new`: all others; there must be none.
    """

    lane: Lane
    module: str
    natively: int
    passed: int
    listed: list[str] = field(default_factory=list)
    fickle: list[str] = field(default_factory=list)
    once: list[str] = field(default_factory=list)
    new: dict[str, Outcome] = field(default_factory=dict)


def judge(
    lane: Lane,
    module: str,
    natively: Outcomes,
    here: Outcomes,
    different: Mapping[str, Outcome],
    natively_again: Sequence[Outcomes],
    here_again: Sequence[Outcomes],
) -> Judged:
    """`different`: as outcomes.differences() gives them; what is unlisted of that was run again."""
    ran = [name for name, outcome in natively.items() if outcome.passed]
    judged = Judged(lane, module, len(ran), sum(here.get(name, ABSENT).passed for name in ran))
    known = reasons(lane.transport)
    for name, outcome in different.items():
        if name in known:
            judged.listed.append(name)
        elif any(not again.get(name, ABSENT).passed for again in natively_again):
            judged.fickle.append(name)
        elif here_again and all(again.get(name, ABSENT).passed for again in here_again):
            judged.once.append(name)
        else:
            judged.new[name] = outcome
    return judged
