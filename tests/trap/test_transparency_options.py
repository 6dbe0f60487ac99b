"""Every option and query of TCP, IP, IPv6 and sockets themselves, on every kind of socket, as the kernel has it."""

from collections.abc import Callable
from typing import Any

import pytest

from support import modes
from support.switch import Switch


@pytest.mark.parametrize("mode", modes.possible()[:1], ids=str, indirect=True)
@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_options_are_as_natively(
    switch: Switch, native: Callable[..., Any], play: Callable[..., Any], transport: str
) -> None:
    expected = native("options.py")
    if transport == "tcp":  # the kernel's own sockets: what setting one says is asked of no other
        expected = {kind: answers for kind, answers in expected.items() if not kind.startswith("set_and_asked")}
    seen = play(switch, "options.py", *expected, options=("--transport", transport))
    found = [
        f"{kind} option {option}: natively {answers}, here {seen[kind].get(option)}"
        for kind in expected
        for option, answers in expected[kind].items()
        if seen[kind].get(option) != answers
    ]
    assert not found, "\n".join([f"{len(found)} differ", *found])
    assert sum(map(len, expected.values())) > 500
