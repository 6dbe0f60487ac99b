"""`python bench/run.py`, from any directory: the same as `python -m bench` from the root of the sources."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    # In place of the folder of this file, which would make its modules importable a second time without their package.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    runpy.run_module("bench", run_name="__main__", alter_sys=True)
