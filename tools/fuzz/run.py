"""Fuzz one target, guided by coverage (atheris, libFuzzer): run.py TARGET SECONDS [CORPUS].

What makes it raise is kept as a file crash-… in the current directory; say its name in place of SECONDS to see why.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["appswitch"]):
    from . import targets

#: Octets of the largest input, of memory, and seconds that one input may take.
_LARGEST, _MEGABYTES, _SECONDS = 4096, 1024, 10


def main() -> None:
    name, what, *rest = sys.argv[1:]
    arguments = [sys.argv[0], f"-max_len={_LARGEST}", f"-rss_limit_mb={_MEGABYTES}", f"-timeout={_SECONDS}"]
    if what.isdecimal():
        corpus = Path(rest[0] if rest else f"build/fuzz/{name}")
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(targets.seeds(name)):
            (corpus / f"seed-{number}").write_bytes(seed)
        arguments += [f"-max_total_time={what}", "-print_final_stats=1", str(corpus)]
    else:
        arguments.append(what)
    atheris.Setup(arguments, targets.TARGETS[name])
    atheris.Fuzz()


main()
