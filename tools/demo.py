#!/usr/bin/env python3
"""The main job on real programs: `make demo`.

Two web servers and some clients run under a switch of the demo's own, in a run directory of its own. What is
promised is checked; the exit status is 0 only when all of it was so.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

APPSWITCH = Path(sys.executable).with_name("appswitch")
DEADLINE = 20.0
BOLD, PLAIN = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() else ("", "")


class Broken(Exception):
    """Something was not as promised; the text says what."""


def say(text: str) -> None:
    print(f"\n{BOLD}{text}{PLAIN}", flush=True)


def show(argv: list[str], ending: str = "") -> None:
    print("  $ " + shlex.join(["appswitch", *argv]) + ending, flush=True)


def indent(text: str) -> None:
    for line in text.splitlines():
        print("    " + line, flush=True)


def appswitch(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run an appswitch command to its end and show it with what it says."""
    show(list(argv))
    result = subprocess.run(
        [APPSWITCH, *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE
    )
    indent(result.stdout + result.stderr)
    return result


def promise(kept: bool, text: str) -> None:
    if not kept:
        raise Broken(text)
    print(f"  ok: {text}", flush=True)


class Web:
    """A Python web server named web, serving one line of text."""

    def __init__(self, number: int, directory: Path) -> None:
        (directory / "index.html").write_text(f"hello from web server {number}\n")
        argv = ["run", "--name", "web", "--tag", "group=1", "--balance", "round-robin"]
        argv += ["--", "python3", "-m", "http.server", "80"]
        show(argv, " &")
        self._log = directory.with_suffix(".log")
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [APPSWITCH, *argv], cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def await_instances(self, count: int) -> None:
        """Wait until the service table has so many instances of web."""
        deadline = time.monotonic() + DEADLINE
        while True:
            if self._process.poll() is not None:
                raise Broken(f"the web server ended by itself:\n{self._log.read_text()}")
            found = subprocess.run(
                [APPSWITCH, "services", "-o", "json"], capture_output=True, text=True, timeout=DEADLINE
            )
            if found.returncode == 0:
                rows = [row for row in json.loads(found.stdout) if (row["name"], row["port"]) == ("web", 80)]
                if len(rows) >= count:
                    return
            if time.monotonic() > deadline:
                raise Broken(
                    f"web does not serve after {DEADLINE:g} s:\n{self._log.read_text()}{found.stderr}"
                )
            time.sleep(0.02)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(DEADLINE)


def clean_up(run_dir: Path) -> None:
    """Take the switch down if the demo has not; without a word, as nobody may be listening any more."""
    if run_dir.exists():
        subprocess.run([APPSWITCH, "down", "--force"], capture_output=True, timeout=DEADLINE)


def demo(base: Path, cleaning: ExitStack) -> None:
    curl = ["--", "curl", "--silent", "--show-error", "--max-time", "10", "http://web/"]
    sites = [base / f"site{number}" for number in (1, 2)]
    for site in sites:
        site.mkdir()

    say("A web server gets a name, an address and port 80 of its own. No root, no daemon, no container:")
    first = Web(1, sites[0])
    cleaning.callback(first.stop)
    first.await_instances(1)
    appswitch("services")

    say("A client of the same group finds it by name:")
    answer = appswitch("run", "--tag", "group=1", *curl)
    promise(answer.stdout == "hello from web server 1\n", "curl has the page")

    say("A client of another group does not get in, and the switch says why:")
    refused = appswitch("run", "--tag", "group=2", *curl)
    promise(refused.returncode == 7, "curl could not connect (its exit code 7)")
    denials = appswitch("denials")
    promise(
        "web" in denials.stdout and "group" in denials.stdout, "the denial names the service and the rule"
    )

    say("The same name and port again: a second instance, and the switch balances between the two:")
    second = Web(2, sites[1])
    cleaning.callback(second.stop)
    second.await_instances(2)
    answers = [appswitch("run", "--tag", "group=1", *curl).stdout for _ in range(4)]
    promise(sorted(set(answers)) == [f"hello from web server {n}\n" for n in (1, 2)], "both servers answered")

    say("What runs, and what it serves:")
    promise(appswitch("ps").stdout.count("web") >= 2, "both servers are listed")
    promise(appswitch("services").stdout.count("web") >= 2, "so are their services")

    say("The programs end, then the switch:")
    first.stop()
    second.stop()
    promise(appswitch("down").returncode == 0, "the switch is down")
    promise(not Path(os.environ["APPSWITCH_RUN_DIR"]).exists(), "nothing is left of it")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="as-demo-", dir="/tmp") as temporary, ExitStack() as cleaning:
        base = Path(temporary)
        run_dir = base / "run"
        os.environ["APPSWITCH_RUN_DIR"] = str(run_dir)
        for variable in ("http_proxy", "all_proxy", "ALL_PROXY"):
            os.environ.pop(variable, None)
        cleaning.callback(clean_up, run_dir)
        try:
            demo(base, cleaning)
        except (Broken, subprocess.TimeoutExpired) as problem:
            print(f"\nNot as promised: {problem}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
        except BrokenPipeError:
            # The reader of our output is gone; Python would complain once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
    print("\nAll as promised.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
