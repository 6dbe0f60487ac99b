"""What all tests share: the three modes, a switch for each test, and a watch on what must not change."""

import contextlib
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from support import modes, needs
from support.command import command_for, python_for_everybody
from support.modes import Mode, Person
from support.native import Native
from support.program import wait_until
from support.switch import Switch, open_switches

_HOST_FILES = ("/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/hosts")


def pytest_configure(config: pytest.Config) -> None:
    """Make the suite depend neither on how it was started nor on how fast the machine is."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # by the number of tests alone: pytest_collection_modifyitems does more
    # Programs inherit ignored signals, which a shell sets for jobs in the background (`nohup`, `&`): begin anew.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    os.umask(0o022)
    # Sockets' paths are limited to 108 bytes (unix(7)), whatever $TMPDIR is.
    tempfile.tempdir = "/tmp"
    # The same examples in every run, for as long as it takes; --hypothesis-profile=default draws others.
    slow = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=slow)
    hypothesis.settings.load_profile("suite")


#: Files of few tests that take long, the longest first. Begun last they would leave the other processes without work.
_LONG = (
    "compat/test_quick.py",
    "hosts/test_hosts_serf.py",
    "gossip/test_gossip_serf.py",
    "service/test_service_upgrade.py",
    "hosts/test_hosts_apart.py",
    "hosts/test_hosts_keys.py",
    "hosts/test_hosts_figure1.py",
    "gossip/test_gossip_alertmanager.py",
    "hosts/test_hosts_adversity.py",
    "service/test_service_kills.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In a process of several: the long files first, then those of the most tests."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    counts = Counter(item.path for item in items)

    def place(item: pytest.Item) -> tuple[int, int, str]:
        path = item.path.as_posix()
        long = next((place for place, name in enumerate(_LONG) if path.endswith("/" + name)), len(_LONG))
        return long, -counts[item.path], path

    items.sort(key=place)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--native",
        action="store_true",
        help="run scenarios without AppSwitch, to show that they are right by themselves (root only)",
    )
    parser.addoption("--kills", type=int, default=20, help="how many kills the switch has to bear (test_service_kills)")
    parser.addoption("--seed", type=int, help="of what these kills are chosen by")
    parser.addoption("--within", type=float, help="seconds that a call may take then, beyond the machine's own stalls")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    not_run = ", ".join(map(str, modes.impossible()))
    if not_run:
        terminalreporter.write_line(f"Not run, because they need root: modes {not_run}", yellow=True)
    left_out = ", ".join(sorted(needs.left_out()))
    if left_out:
        terminalreporter.write_line(f"Not run, because they could not be installed: tests with {left_out}", yellow=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure is told with what every switch that is up has logged, and with how busy the machine was."""
    report = yield
    if report.failed:
        report.sections += [(f"switch in {switch.base}", switch.describe()) for switch in open_switches]
        report.sections.append(("load average", str(os.getloadavg())))
    return report


@pytest.fixture(scope="session", autouse=True)
def _host_untouched() -> Iterator[None]:
    """No test may write to the host's resolver files or leave a network device behind; others may meanwhile."""

    def traces() -> set[str]:
        texts = {}
        for name in _HOST_FILES:
            with contextlib.suppress(FileNotFoundError):
                texts[name] = Path(name).read_text(errors="replace")
        written = {f"{name}: {line}" for name, text in texts.items() for line in text.splitlines() if _ours(line)}
        emptied = {f"{name} is empty" for name in _HOST_FILES if not texts.get(name)}
        return written | emptied | {name for name in os.listdir("/sys/class/net") if name.startswith("as")}

    before = traces()
    yield
    # What others write may be half there for a moment.
    wait_until(lambda: traces() <= before, lambda: f"{traces() - before} to go, which tests have left behind", 10)


def _ours(line: str) -> bool:
    return "appswitch" in line or "100.64." in line


@pytest.fixture(scope="session")
def public() -> Iterator[Path]:
    """A directory for this session that every user can read: programs built or copied for tests."""
    path = Path(tempfile.mkdtemp(prefix="as-public-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=modes.possible(), ids=str)
def mode(request: pytest.FixtureRequest) -> Mode:
    """Each mode that the suite's privilege allows, in turn."""
    chosen: Mode = request.param
    return chosen


@pytest.fixture(scope="session")
def appswitch_command(public: Path) -> Callable[[Person], Path]:
    """Tells where a person finds the appswitch command."""
    found: dict[Person, Path] = {}

    def command(person: Person) -> Path:
        if person not in found:
            found[person] = command_for(person, public)
        return found[person]

    return command


@pytest.fixture(scope="session")
def python() -> str:
    """An interpreter that every user may run, for programs written in Python."""
    return python_for_everybody()


@pytest.fixture(scope="session")
def c_program(public: Path) -> Callable[..., Path]:
    """Builds tests/programs/src/NAME.c with gcc, once for each set of flags; gives the executable's path."""
    sources = Path(__file__).parent / "programs" / "src"
    built: dict[tuple[str, ...], Path] = {}

    def build(name: str, *flags: str) -> Path:
        key = (name, *flags)
        if key not in built:
            target = public / f"{name}-{len(built)}"
            needs.compile_c(str(sources / f"{name}.c"), str(target), *flags)
            target.chmod(0o755)
            built[key] = target
        return built[key]

    return build


@pytest.fixture(scope="session")
def go_program(public: Path, pytestconfig: pytest.Config) -> Callable[[Path], Path]:
    """Builds a Go file, once; gives the executable's path."""
    kept = getattr(pytestconfig, "cache", None)  # from run to run, unless pytest was told otherwise
    cache = Path(kept.mkdir("go")) if kept else public / "go-cache"

    def build(source: Path) -> Path:
        target = public / source.stem
        if not target.exists():
            needs.build_go(str(source), target, cache)
        return target

    return build


@pytest.fixture
def new_switch(
    request: pytest.FixtureRequest, mode: Mode, appswitch_command: Callable[[Person], Path]
) -> Iterator[Callable[..., Switch]]:
    """Makes switches, each in a run directory of its own and not yet up; keywords go to Switch."""
    made: list[Switch] = []

    def make(**keywords: dict[str, str]) -> Switch:
        if request.config.getoption("native"):
            made.append(Native(mode, **keywords))
        else:
            made.append(Switch(mode, appswitch_command, **keywords))
        return made[-1]

    yield make
    problems = []
    for switch in reversed(made):
        try:
            switch.close()
        except AssertionError as error:
            problems.append(str(error))
    assert not problems, "\n".join(problems)


@pytest.fixture
def switch(new_switch: Callable[..., Switch]) -> Switch:
    """A switch that is up."""
    made = new_switch()
    made.up()
    return made
