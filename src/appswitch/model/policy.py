"""May this client reach this service? The default rule of the paper (section 4, Figure 1): groups.

Pure: values in, a verdict out. Richer rules get their place here.
"""

from __future__ import annotations

from typing import NamedTuple

from .identity import Tags

GROUP = "group"


class Verdict(NamedTuple):
    """`rule` says in an operator's words which rule decided."""

    allowed: bool
    rule: str


ALLOWED = Verdict(True, "group")


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
