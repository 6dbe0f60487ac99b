"""May this client reach this service? The default rule of the paper (section 4, Figure 1): groups.

Pure: values in, a verdict out. Richer rules get their place here.
"""

from __future__ import annotations

import operator
from typing import NamedTuple

from .identity import Tags

GROUP = "group"


class Verdict(NamedTuple):
    """`rule` says in an operator's words which rule decided."""

    allowed: bool
    rule: str


ALLOWED = Verdict(True, "group")


def is_slip(key: str) -> bool:
    """Is this key probably a misspelt `group`: by a letter, or by capitals? Such a tag would keep nobody out."""
    low = key.lower()
    if key == GROUP or not low.isalpha():
        return False
    if len(low) == len(GROUP):
        return sorted(low) == sorted(GROUP) or sum(map(operator.ne, low, GROUP)) <= 1
    return GROUP in _less_one_letter(low) or low in _less_one_letter(GROUP)


def _less_one_letter(word: str) -> set[str]:
    return {word[:place] + word[place + 1 :] for place in range(len(word))}


def groups(tags: Tags) -> frozenset[str]:
    return frozenset(value for key, value in tags if key == GROUP)


def check(client: Tags, service: Tags) -> Verdict:
    """Allowed when neither side has a `group`, or when both have one and share a value."""
    if client == service:
        return ALLOWED
    ours, theirs = groups(client), groups(service)
    if ours == theirs or ours & theirs:
        return ALLOWED
    if not ours:
        return Verdict(False, f"service has group {_list(theirs)}, client has none")
    if not theirs:
        return Verdict(False, f"client has group {_list(ours)}, service has none")
    return Verdict(False, f"client group {_list(ours)} and service group {_list(theirs)} share no value")


def _list(values: frozenset[str]) -> str:
    return ",".join(sorted(values))
