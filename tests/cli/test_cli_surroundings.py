"""Commands where something around them is missing: output, standard descriptors, environment, directories."""

import fcntl
import os
import shlex
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from support import modes
from support.modes import MYSELF, ORDINARY
from support.program import Program, wait_until
from support.switch import PATH, Switch

NewSwitch = Callable[..., Switch]

one_mode = pytest.mark.parametrize("mode", modes.possible()[:1], ids=str)
ordinary_mode = pytest.mark.parametrize("mode", modes.possible()[1:2] or modes.possible(), ids=str)


def shell(switch: Switch, line: str, **popen: object) -> Program:
    """Run a line of shell in which `appswitch` is the command, to its end."""
    line = f"appswitch() {{ {shlex.quote(switch.command_line([])[0])} \"$@\"; }}\n{line}"
    program = switch.start(["bash", "-c", line], "shell", switch.mode.switch_owner, **popen)  # type: ignore[arg-type]
    program.wait()
    return program


@one_mode
def test_a_list_that_cannot_be_written_is_an_error(switch: Switch) -> None:
    for command in ("services -o json", "version"):
        full = shell(switch, f"appswitch {command} > /dev/full")
        assert (full.returncode, full.errors()) == (
            1,
            "appswitch: cannot write to standard output: No space left on device\n",
        )
        closed = shell(switch, f"appswitch {command} >&-")
        assert (closed.returncode, closed.errors()) == (
            1,
            "appswitch: cannot write to standard output: Bad file descriptor\n",
        )
        gone = shell(switch, f"appswitch {command} > >(:); exit $?")
        assert gone.errors() == ""
        head = shell(switch, f"appswitch {command} | head -c 1")
        assert (len(head.output()), head.errors()) == (1, "")


@one_mode
def test_what_the_locale_cannot_encode_is_printed_all_the_same(switch: Switch) -> None:
    switch.run(["sh", "-c", "echo on; exec sleep 60", "né"]).wait_output("on")
    listed = shell(switch, "export LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0; appswitch ps")
    assert (listed.returncode, listed.errors()) == (0, "")
    assert r"exec sleep 60' 'n\xe9'" in listed.output()


@one_mode
@pytest.mark.parametrize("files", [7, 11, 14])
def test_too_few_open_files_are_told_as_such(switch: Switch, files: int) -> None:
    program = shell(switch, f"ulimit -n {files}; appswitch run -- true")
    assert program.returncode == 125
    assert program.errors().endswith("(Too many open files): raise the limit of open files (`ulimit -n`)\n")


@one_mode
@pytest.mark.parametrize("output", ["> /dev/full", "<&- >&- 2>&-"])
def test_what_is_done_is_done_whether_or_not_it_can_be_said(new_switch: NewSwitch, output: str) -> None:
    switch = new_switch()
    assert shell(switch, f"appswitch up {output}").returncode == 0
    lock = (switch.run_dir / "switch.lock").read_text()
    assert int(lock) in switch.processes(), "nothing was written into a file by mistake"
    assert shell(switch, f"appswitch run -- sh -c 'exit 7' {output}").returncode == 7
    assert shell(switch, f"appswitch run -- no-such-program {output}").returncode == 127
    assert shell(switch, f"appswitch down {output}").returncode == 0
    assert not switch.run_dir.exists()


@one_mode
def test_a_switch_without_standard_descriptors_logs_into_no_file(new_switch: NewSwitch) -> None:
    switch = new_switch()
    line = f"exec {switch.command_line([])[0]} up --foreground --log-level debug <&- >&- 2>&-"
    program = switch.start(["bash", "-c", line], "up", switch.mode.switch_owner)
    wait_until(lambda: (switch.run_dir / "control.sock").exists(), lambda: f"{program}")
    switch.check(["true"], status=0)
    roles = {process["role"]: process["pid"] for process in switch.cli("status", "-o", "json")["processes"]}
    assert (switch.run_dir / "switch.lock").read_text() == f"{roles['supervisor']}\n"
    program.send_signal(signal.SIGTERM)
    assert program.wait() == 0


def waits_for_an_answer(pid: int) -> bool:
    """Is it blocked in poll(2), number 7 on x86_64 and ppoll 73 on aarch64, or in recvfrom(2)?"""
    try:
        return Path(f"/proc/{pid}/syscall").read_text().split()[0] in ("7", "73", "45", "207")
    except OSError:
        return False


@one_mode
def test_ctrl_c_ends_any_command_that_waits_without_a_word(switch: Switch) -> None:
    """Each has connected, and gets no answer."""
    commands = ("status", "ps", "services", "denials", "members", "token", "down", "leave", "join as1-x", "run -- true")
    [supervisor] = [p["pid"] for p in switch.cli("status", "-o", "json")["processes"] if p["role"] == "supervisor"]
    os.kill(supervisor, signal.SIGSTOP)
    try:
        command = switch.command_line([])[0]
        started = [
            switch.start([command, *line.split()], line.split()[0], switch.mode.switch_owner) for line in commands
        ]
        waiting = list(started)

        def interrupted() -> bool:
            """Each as soon as it waits, in whatever order: it does not do so for ever."""
            for program in list(waiting):
                if waits_for_an_answer(program.pid):
                    program.send_signal(signal.SIGINT)
                    waiting.remove(program)
            return not waiting

        wait_until(interrupted, lambda: f"the waiting of {', '.join(map(str, waiting))}")
        for program in started:
            assert program.wait() == -signal.SIGINT, "which a shell shows as 130"
            assert (program.output(), program.errors()) == ("", "")
    finally:
        os.kill(supervisor, signal.SIGCONT)
    wait_until(lambda: not switch.run_dir.exists(), lambda: "what `down` had asked for already")


@one_mode
def test_ctrl_c_on_the_way_up_leaves_nothing_that_is_in_the_way(new_switch: NewSwitch) -> None:
    """A lock that is held keeps `up` waiting, with the directory there already."""
    switch = new_switch()
    switch.run_dir.mkdir()
    switch.mode.switch_owner.give(switch.run_dir)
    lock = switch.run_dir / "switch.lock"
    lock.touch()
    switch.mode.switch_owner.give(lock)
    switch.run_dir.chmod(0o777)
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        program = switch.start([switch.command_line([])[0], "up"], "up", switch.mode.switch_owner)
        wait_until(lambda: switch.run_dir.stat().st_mode & 0o777 != 0o777, lambda: f"{program}")
        program.send_signal(signal.SIGINT)
        assert program.wait() == -signal.SIGINT
    assert (program.output(), program.errors()) == ("", "")
    switch.up()


def bare(switch: Switch, line: str, environ: Mapping[str, str] | None = None) -> Program:
    """A command with nothing in its environment but PATH and what is given, as the programs' owner."""
    words = [f"{name}={value}" for name, value in (environ or {}).items()]
    argv = ["env", "-i", f"PATH={PATH}", *words, switch.command_line([])[0], *line.split()]
    program = switch.start(argv, "bare", switch.mode.program_owner)
    program.wait()
    return program


@ordinary_mode
def test_without_home_and_session_directory(new_switch: NewSwitch) -> None:
    switch = new_switch()
    uid = switch.mode.program_owner.uid
    shown = bare(switch, "config show")
    assert shown.returncode == 0
    assert f"/tmp/appswitch-{uid}" in shown.output() or uid == 0
    here = {"APPSWITCH_RUN_DIR": str(switch.run_dir)}
    assert bare(switch, "up", here).returncode == 0
    assert bare(switch, "run --name web -- true", here).returncode == 0
    assert bare(switch, "down", here).returncode == 0
    for wrong in ("", "relative", "/nonexistent", "/proc/1/fd", "/dev/null"):
        program = bare(switch, "status", {"XDG_RUNTIME_DIR": wrong, "XDG_CONFIG_HOME": wrong, "HOME": wrong} | here)
        assert program.errors().startswith("appswitch: no switch is up in ")


@pytest.mark.skipif(MYSELF.uid != 0, reason="needs a second user")
@ordinary_mode
def test_directories_in_which_no_switch_can_be(new_switch: NewSwitch) -> None:
    """Told by `up` (exit code 1) and `run` (125) in one sentence; nothing has changed. More: test_switch_paths."""
    switch = new_switch()
    base = switch.base
    (base / "roots").mkdir(mode=0o755)
    (base / "planted").mkdir()
    (base / "planted" / "switch.lock").touch()
    switch.mode.switch_owner.give(base / "planted")
    (base / "planted").chmod(0o777)
    cases = {
        str(base / "roots"): "belongs to user 0, not to user",
        str(base / "planted"): "switch.lock belongs to user 0, not to user",
        os.fsdecode(b"/tmp/\xff"): "is not UTF-8",
    }
    before = contents(base)
    for path, words in cases.items():
        for line, code in ((["up"], 1), (["run", "--", "true"], 125)):
            argv = [switch.command_line([])[0], line[0], "--run-dir", path, *line[1:]]
            program = switch.start(argv, "bad", ORDINARY)
            assert program.wait() == code, program
            said = program.errors()
            assert said.startswith("appswitch: "), said
            assert said.count("\n") == 1
            assert words in said
    assert contents(base) == before


def contents(base: Path) -> list[Path]:
    return sorted(path for path in base.rglob("*") if path.parent.name != "output")


@one_mode
def test_a_wrong_request_starts_no_switch(new_switch: NewSwitch) -> None:
    switch = new_switch()
    for words in (
        ["--name", "a b"],
        ["--wait-timeout", "soon"],
        ["--transport", "pigeon"],
    ):
        done = switch.check(["true"], options=words, status=125)
        assert done.stderr.startswith("appswitch: ")
        assert done.stderr.count("\n") == 1
    assert not switch.run_dir.exists()


@one_mode
def test_options_behind_the_program_are_noticed(switch: Switch) -> None:
    program = switch.start([switch.command_line([])[0], "run", "web", "--tag", "a=b", "--", "true"], "run", MYSELF)
    assert program.wait() == 127
    assert program.errors() == "appswitch: web: not found on PATH: options go before the program\n"
