"""Reads programs, one JSON object a line, and plays each in fresh processes; writes what they saw, one a line.

    {"steps": [[PROCESS, ACT, ARGUMENT …] …], "leave_out": [NAME …]}  →  {"results": […], "met": [NAME …]}
"""

import gc
import json
import sys

from play import Play


def main() -> None:
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        play = Play(asked["leave_out"])
        try:
            results = play.run(asked["steps"])
        finally:
            play.close()
        print(json.dumps({"results": results, "met": sorted(play.met)}), flush=True)


if __name__ == "__main__":
    main()
