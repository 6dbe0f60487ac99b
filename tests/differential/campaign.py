"""As many random programs as are asked for: `make differential DIFF_EXAMPLES=10000`.

They are drawn anew from DIFF_SEED on, in batches with a seed each; DIFF_PROGRAM plays one again.
"""

import json
import os

import pytest

from support import modes

from .lanes import Lanes
from .test_differential import check, play

EXAMPLES = int(os.environ.get("DIFF_EXAMPLES") or 10_000)
SEED = int(os.environ.get("DIFF_SEED") or 1)
PROGRAM = os.environ.get("DIFF_PROGRAM")
BATCH = 500


@pytest.mark.parametrize("mode", modes.possible()[:1], ids=str, indirect=True)
def test_as_many_programs_as_asked_for(lanes: Lanes) -> None:
    if PROGRAM:
        check([str(difference) for difference in lanes.differences(json.loads(PROGRAM))])
        return
    kinds: dict[tuple[str, ...], str] = {}
    for index in range(0, EXAMPLES, BATCH):
        seed = SEED + index // BATCH
        for kind, difference in play(lanes, min(BATCH, EXAMPLES - index), seed).items():
            if kind not in kinds:
                kinds[kind] = f"(seed {seed}) {lanes.shrink(difference)}"
                print(kinds[kind], flush=True)
        print(f"{min(index + BATCH, EXAMPLES)} programs: {len(kinds)} differences", flush=True)
    check(list(kinds.values()))
