#!/usr/bin/env python3
"""The paper's Figure 1 on one host, then on three: `make demo-cluster`.

Two Web, two App and one DB are one distributed application: one name, one virtual IP, one port space. Groups 1 and 2
keep Web from DB. The same five command lines serve on one host and on three. A host is a network namespace of the
demo's own, on a bridge that nobody else sees. What is promised is checked; the exit status is 0 only when all of it
was so. Needs root, for namespaces that are joined by a bridge.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.hosts import PATIENCE, Host, Hosts  # noqa: E402  (the laboratory of the tests)
from support.program import Program, wait_until  # noqa: E402

APPSWITCH = Path(sys.executable).with_name("appswitch")
FIGURE = Path(__file__).with_name("figure1")
BOLD, PLAIN = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() else ("", "")

WEB = ["--name", "shop", "--tag", "group=1", "--", "python3", "web.py"]
APP = ["--name", "shop", "--tag", "group=1", "--tag", "group=2", "--", "python3", "app.py"]
DB = ["--name", "shop", "--tag", "group=2", "--", "redis-server", "--save", "", "--loglevel", "warning"]
COMMANDS = (("web", WEB), ("web", WEB), ("app", APP), ("app", APP), ("db", DB))
"""Figure 1: five command lines, three of them different."""
PORTS = {"web": 80, "app": 8080, "db": 6379}
CURL = ["curl", "--silent", "--show-error", "--max-time", "20"]


class Broken(Exception):
    """Something was not as promised; the text says what."""


def say(text: str) -> None:
    print(f"\n{BOLD}{text}{PLAIN}", flush=True)


def show(host: Host, words: Sequence[str], ending: str = "") -> None:
    print(f"  H{host.number}$ " + shlex.join(["appswitch", *words]) + ending, flush=True)


def indent(text: str) -> None:
    for line in text.splitlines():
        print("      " + line, flush=True)


def promise(kept: bool, text: str) -> None:
    if not kept:
        raise Broken(text)
    print(f"  ok: {text}", flush=True)


class Figure:
    """The five programs of Figure 1 on some hosts, and what a client on one of them sees."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self.hosts = hosts
        self.programs: dict[str, list[Program]] = {}
        self._places: dict[int, str] = {}

    def start(self, places: Sequence[Host]) -> None:
        """Run the command lines, each at its place, and wait until every host knows all five services."""
        for (role, words), host in zip(COMMANDS, places, strict=True):
            show(host, ["run", *words], " &")
            argv = words[words.index("--") + 1 :]
            program = host.run(argv, cwd=FIGURE, options=words[: words.index("--")])
            self.programs.setdefault(role, []).append(program)
            self._places[program.pid] = f"H{host.number}"
        for host in self.hosts:
            for role, programs in self.programs.items():
                self.await_rows(host, role, len(programs))

    def await_rows(self, host: Host, role: str, count: int) -> None:
        """Wait until this host knows so many services of a role."""
        port = PORTS[role]

        def look() -> bool:
            for program in self.programs[role]:
                if program.returncode not in (None, -15):
                    raise Broken(f"{role} ended by itself: {program}")
            # A program may listen more than once: Redis has a socket for each family.
            return len({(row.get("host"), row["program"]) for row in host.services("shop", port)}) == count

        wait_until(look, lambda: f"{count} {role} in the table of H{host.number}:\n{host.cli('services')}", PATIENCE)

    def curl(self, host: Host, path: str = "/", group: str = "1") -> str:
        """What curl says on a host; process ids have become names of places."""
        words = ["--tag", f"group={group}", "--", *CURL, f"http://shop{path}"]
        show(host, ["run", *words])
        done = host.check([*CURL, f"http://shop{path}"], tags=[f"group={group}"], timeout=PATIENCE)
        text = re.sub(r"\b(web|app) (\d+)", self._place, done.stdout + done.stderr)
        indent(text)
        return text

    def _place(self, match: re.Match[str]) -> str:
        place = self._places.get(int(match[2]), "?")
        number = [one.pid for one in self.programs[match[1]]].index(int(match[2])) + 1
        return f"{match[1]} {number} on {place}"

    def promises(self, client: Host) -> None:
        """What Figure 1 promises, seen by a client on this host."""
        say("A client of group 1 is answered by both Web in turn; Web finds App, and App finds DB, on localhost:")
        answers = [self.curl(client) for _ in range(4)]
        visits = [re.search(r"^web \d on H\d, app \d on H\d, visit (\d+)$", answer) for answer in answers]
        promise(all(visits), "every answer has come through web, app and database")
        promise(len({answer.split(",")[0] for answer in answers}) == 2, "both web servers have answered")
        numbers = [int(visit[1]) for visit in visits if visit]
        promise(numbers == list(range(numbers[0], numbers[0] + 4)), "one database has counted all visits")

        say("Web is of group 1 and DB of group 2: neither Web itself nor a client of group 2 gets past that:")
        promise("Permission denied" in self.curl(client, "/database"), "the database is not for web")
        promise("connect" in self.curl(client, group="2"), "web is not for a client of group 2")
        denied = "".join(host.cli("denials") for host in self.hosts)
        indent(denied)
        promise("6379" in denied, "the switch says who was refused, and by which rule")

    def stop(self) -> None:
        for programs in self.programs.values():
            for program in programs:
                program.stop()


@contextmanager
def hosts(count: int) -> Iterator[Hosts]:
    """Hosts that are gone afterwards, with their switches."""
    made = Hosts(count, lambda person: APPSWITCH)
    try:
        yield made
    finally:
        made.close()


def cli(host: Host, *words: str) -> str:
    """Run an appswitch command on a host and show it with what it says."""
    show(host, words)
    done = host.control(*words)
    indent(done.stdout + done.stderr)
    if done.returncode:
        raise Broken(f"`appswitch {words[0]}` ended with exit code {done.returncode}")
    return done.stdout


def on_one_host() -> None:
    say("Figure 1 of the paper on one host, H1. It has one switch:")
    with hosts(1) as lab:
        [one] = lab
        cli(one, "up")
        say("Two Web, two App and one DB, one application: the same name, virtual IP and port space for all five:")
        figure = Figure(list(lab))
        figure.start([one] * 5)
        cli(one, "services")
        figure.promises(one)
        figure.stop()


def on_three_hosts() -> None:
    say("Now on three hosts. H1 begins a cluster; all that the others need is one string:")
    with hosts(3) as lab:
        one, two, three = lab
        cli(one, "up", "--node-interface", "eth0")
        token = cli(one, "token").strip()
        for host in (two, three):
            cli(host, "up", "--join", token)
        for host in lab:
            wait_until(lambda host=host: len(host.members("alive")) == 3, lambda: "three members", PATIENCE)  # type: ignore[misc]
        cli(three, "members")
        say("The same five command lines, now on three hosts:")
        figure = Figure(list(lab))
        figure.start([one, two, one, two, three])
        cli(three, "services")
        figure.promises(three)

        say("App 2 moves from H2 to H3, with the same command line. Its clients change nothing:")
        figure.programs["app"].pop().stop()
        show(two, ["run", *APP], "    # stopped")
        figure.await_rows(one, "app", 1)
        show(three, ["run", *APP], " &")
        argv = APP[APP.index("--") + 1 :]
        moved = three.run(argv, cwd=FIGURE, options=APP[: APP.index("--")])
        figure.programs["app"].append(moved)
        figure._places[moved.pid] = "H3"
        for host in lab:
            figure.await_rows(host, "app", 2)
        answers = [figure.curl(three) for _ in range(4)]
        promise(any("app 2 on H3" in answer for answer in answers), "app 2 answers from its new host")

        say("H2 loses its power. The others give it up, and go on with what is left:")
        print("  H2: power off", flush=True)
        two.kill()
        figure.programs["web"].pop().stop()
        wait_until(lambda: one.members("failed"), lambda: "H2 to be given up", PATIENCE)
        cli(one, "members")
        for host in (one, three):
            figure.await_rows(host, "web", 1)
        promise("web 1 on H1" in figure.curl(three), "web 1 answers")
        figure.stop()


def main() -> int:
    if os.geteuid() != 0:
        print("The hosts of this demo are network namespaces on a bridge: run it as root.", file=sys.stderr)
        return 1
    for tool in ("ip", "nsenter", "curl", "redis-server"):
        if not shutil.which(tool, path="/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/bin"):
            print(f"This demo needs {tool}, and could not install it: see above.", file=sys.stderr)
            return 1
    try:
        on_one_host()
        on_three_hosts()
    except (Broken, AssertionError, subprocess.TimeoutExpired) as problem:
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
