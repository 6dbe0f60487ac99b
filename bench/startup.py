"""What `appswitch run` adds to the start of a program: `appswitch run -- true` against `true`."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from .lab import Lab
from .procs import Unavailable, brief

CASE = "startup"
CELL = "true"
NATIVE, APPSWITCH = "native", Lab.APPSWITCH

Measure = Callable[[], float]


def run(lab: Lab) -> None:
    """Start both in turn, a switch being up: wall-clock milliseconds from before the fork to the exit."""
    with ExitStack() as stack:
        env = dict(os.environ)
        variants: dict[str, list[str]] = {NATIVE: ["true"]}
        samples: dict[str, list[float]] = {NATIVE: [], APPSWITCH: []}
        try:
            switch = stack.enter_context(lab.switch())
            env |= switch.env
            variants[APPSWITCH] = [*switch.run("true")]
        except Unavailable as error:
            lab.skip(CASE, [CELL], APPSWITCH, str(error))
        lab.say(f"{CASE}: {lab.settings.starts} starts")
        for argv in variants.values():
            try:
                _timed(argv, env)  # warms the file cache
            except Unavailable as error:
                lab.skip(CASE, [CELL], APPSWITCH, str(error))
                variants.pop(APPSWITCH, None)
                break
        for _ in range(lab.settings.starts):
            for name, argv in variants.items():
                samples[name].append(_timed(argv, env))
        for name in variants:
            lab.results.put(CASE, CELL, name, samples[name])


def _timed(argv: Sequence[str], env: dict[str, str]) -> float:
    """Milliseconds from start to exit of a program that must succeed."""
    begin = time.perf_counter_ns()
    try:
        done = subprocess.run(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"`{os.path.basename(argv[0])}` did not run: {error}") from error
    taken = (time.perf_counter_ns() - begin) / 1e6
    if done.returncode:
        raise Unavailable(f"exit code {done.returncode}: {brief(done.stderr.decode(errors='replace'))}")
    return taken
