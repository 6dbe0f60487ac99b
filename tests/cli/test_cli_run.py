"""`appswitch run`: the process becomes the program, and failures are ours only where they are (point 1)."""

import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support import modes
from support.modes import MYSELF, ORDINARY
from support.program import DEADLINE, wait_until
from support.switch import Switch

NewSwitch = Callable[..., Switch]

one_mode = pytest.mark.parametrize("mode", modes.possible()[:1], ids=str)
last_mode = pytest.mark.parametrize("mode", modes.possible()[-1:], ids=str)
user_root = pytest.mark.parametrize("mode", [m for m in modes.possible() if m.name == "user-root"], ids=str)


def natively(switch: Switch, argv: list[str], **popen: object) -> str:
    """What the program prints without us, everything else being equal."""
    program = switch.start(argv, "native", switch.mode.program_owner, **popen)  # type: ignore[arg-type]
    program.wait()
    return program.output()


def supervisors(switch: Switch) -> int:
    """Living supervisors of this run directory."""
    found = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"APPSWITCH_RUN_DIR={switch.run_dir}\0".encode() in (process / "environ").read_bytes()
            found += ours and (process / "comm").read_text() == "appswitch-sup\n"
        except OSError:
            pass
    return found


def no_program_is_left(switch: Switch) -> None:
    """Sooner or later: the switch is told of a program's end by an event."""
    wait_until(lambda: switch.cli("ps", "-o", "json") == [], lambda: "no program")


def test_pid_parent_and_group_are_the_programs_own(switch: Switch) -> None:
    program = switch.run(["sh", "-c", "echo $$ $PPID; exec cat /proc/$$/stat"])
    assert program.wait() == 0
    first, stat = program.output().splitlines()
    assert first == f"{program.pid} {os.getpid()}"
    assert stat.split()[3:5] == [str(os.getpid()), str(program.pid)]


def _sleeps(pid: int) -> bool:
    """Is it sleep(1), and blocked in clock_nanosleep(2), number 230 on x86_64 and 115 on aarch64?"""
    name, call = (Path(f"/proc/{pid}/{what}").read_text().split()[0] for what in ("comm", "syscall"))
    return name == "sleep" and call in ("230", "115")


@last_mode
def test_nothing_of_ours_stays_beside_it(switch: Switch) -> None:
    program = switch.run(["sleep", "600"], name="alone")
    # It is listed a moment before its process becomes the program, and that has its libraries open for another.
    wait_until(lambda: _sleeps(program.pid), lambda: f"{program}")
    assert [row["pid"] for row in switch.cli("ps", "-o", "json")] == [program.pid]
    assert Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text() == ""
    inside = sorted(int(number) for number in os.listdir(f"/proc/{program.pid}/fd"))
    assert inside == [0, 1, 2]


def test_everything_inherited_is_as_it_was(switch: Switch) -> None:
    """Signals ignored and blocked, umask, limits, directory, environment and descriptors, as a shell set them."""
    setting = "trap '' INT QUIT HUP; umask 027; ulimit -n 321; exec <&- 5</dev/null; cd /; unset LANG"
    look = (
        "grep -E '^(Sig(Blk|Ign|Cgt)|Umask|Groups)' /proc/self/status; cat /proc/self/limits; pwd; env | sort; "
        "find /proc/self/fd -type l -printf '%f %l\\n' | sed -E 's/[0-9]{3,}//; s/[0-9]+-[a-z]+//'; "
        "cut -d ' ' -f 6 /proc/$$/stat"
    )
    wrapper = ["sh", "-c", f'{setting}; exec "$@"', "sh"]
    program = switch.start([*wrapper, *switch.command_line(["bash", "-c", look])], "run", switch.mode.program_owner)
    assert program.wait() == 0, program
    assert program.output() == natively(switch, [*wrapper, "bash", "-c", look])


@one_mode
def test_signals_that_python_ignores_are_as_by_default(switch: Switch) -> None:
    program = switch.run(["sh", "-c", "grep SigIgn /proc/self/status"])
    assert program.wait() == 0
    assert int(program.output().split()[1], 16) & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1) == 0


@one_mode
def test_exit_codes_and_signals_are_the_programs(switch: Switch) -> None:
    for code in (0, 1, 125, 255):
        switch.check(["sh", "-c", f"exit {code}"], status=code)
    program = switch.run(["sh", "-c", "echo ready; exec sleep 60"])
    program.wait_output("ready")
    program.send_signal(signal.SIGTERM)
    assert program.wait() == -signal.SIGTERM


@one_mode
def test_standard_input_and_terminal_are_the_programs(switch: Switch) -> None:
    program = switch.run(["cat"], stdin=subprocess.PIPE)
    program.process.communicate(b"all of it")
    assert program.output() == "all of it"
    leader, follower = pty.openpty()
    with open(leader, "rb", buffering=0), open(follower, "r+b", buffering=0) as terminal:
        program = switch.run(["tty"], stdin=terminal)
        assert program.wait() == 0
        assert program.output().strip() == os.ttyname(follower)


@one_mode
def test_a_script_without_an_interpreter_line_is_the_shells(switch: Switch) -> None:
    script = switch.work / "script"
    script.write_text("echo from the shell: $1\n")
    script.chmod(0o755)
    assert switch.check(["./script", "word"], status=0).stdout == "from the shell: word\n"


@last_mode
@pytest.mark.parametrize("made_by", ["path", "slash"])
def test_what_cannot_be_executed(switch: Switch, made_by: str) -> None:
    plain = switch.work / "plain"
    plain.write_text("#!/bin/sh\n")
    plain.chmod(0o644)
    broken = switch.work / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    for path in (plain, broken):
        switch.mode.program_owner.give(path)
    if made_by == "slash":
        cases = {"/no/such/file": 127, "./plain": 126, "/tmp": 126, "./broken": 127, "./plain/x": 127}
        env = {}
    else:
        cases = {"no-such-command": 127, "plain": 126, "broken": 127, "": 127}
        env = {"PATH": f"/usr/bin:{switch.work}"}
    for command, code in cases.items():
        done = switch.check([command], status=code, env=env)
        assert done.stderr.startswith(f"appswitch: {command}") or "/plain: not executable" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    no_program_is_left(switch)


@one_mode
def test_wrong_command_lines_are_told_in_one_sentence(switch: Switch) -> None:
    for words in (
        [],
        ["--"],
        ["--name"],
        ["--nmae", "web", "--", "true"],
        ["--transport", "pigeon", "--", "true"],
        ["--tag", "group", "--", "true"],
        ["--ip", "300.1.1.1", "--", "true"],
        ["--ip", "100.64.0.53", "--", "true"],
        ["--name", "a b", "--", "true"],
    ):
        program = switch.start([switch.command_line([])[0], "run", *words], "run", switch.mode.program_owner)
        assert program.wait() == 125, program
        assert program.errors().startswith("appswitch: ")
        assert len(program.errors().splitlines()) == 1
        assert program.output() == ""


@one_mode
def test_help_is_for_everybody(new_switch: NewSwitch) -> None:
    switch = new_switch()
    assert "appswitch COMMAND --help" in switch.cli("--help")
    for name in ("run", "up", "down", "status", "ps", "services", "denials", "version"):
        assert switch.cli(name, "--help").startswith(f"Usage: appswitch {name}")
    assert switch.cli("version").startswith("appswitch ")
    assert "no command 'rnu'" in switch.control("rnu", status=2).stderr
    assert not switch.run_dir.exists()


@last_mode
def test_inside_itself_it_says_why_not(switch: Switch) -> None:
    inner = switch.command_line(["true"])
    done = switch.check(inner, status=125)
    assert "already under AppSwitch" in done.stderr
    assert "Traceback" not in done.stderr


@one_mode
def test_other_seccomp_supervisors_are_named_too(switch: Switch, python: str) -> None:
    """Where the early look finds nothing the kernel says EBUSY."""
    script = (
        "import os, sys\nfrom appswitch.linux import seccomp\nfrom appswitch.linux.bpf import ALLOW, Assembler\n"
        "asm = Assembler()\nasm.ret(ALLOW)\n"
        "os.set_inheritable(seccomp.install(asm.assemble()), True)\nos.execv(sys.argv[1], sys.argv[1:])"
    )
    command = switch.command_line(["true"])
    interpreter = str(Path(command[0]).with_name("python"))
    program = switch.start([interpreter, "-c", script, *command], "run", switch.mode.program_owner)
    assert program.wait() == 125
    assert "another seccomp supervisor" in program.errors()
    no_program_is_left(switch)


def test_without_a_switch_one_is_started_by_any_number_of_runs(new_switch: NewSwitch) -> None:
    switch = new_switch()
    if switch.mode.switch_owner != switch.mode.program_owner:
        done = switch.check(["true"], status=125)
        assert "cannot make the run directory" in done.stderr
        return
    started = [switch.run(["sh", "-c", "echo $$; exec sleep 600"], name=f"p{n}") for n in range(4)]
    for program in started:
        program.wait_output(str(program.pid))
    assert len(switch.cli("ps", "-o", "json")) == 4
    assert supervisors(switch) == 1


@one_mode
def test_a_switch_that_died_is_replaced_by_the_next_run(switch: Switch) -> None:
    pids = {p["role"]: p["pid"] for p in switch.cli("status", "-o", "json")["processes"]}
    os.kill(pids["supervisor"], signal.SIGSTOP)  # or it would have another keeper
    killed = [os.pidfd_open(pids[role]) for role in ("keeper", "supervisor")]
    for pidfd in killed:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    for pidfd in killed:
        assert select.select([pidfd], [], [], DEADLINE)[0]  # it has ended: nobody is to connect to it yet
        os.close(pidfd)
    switch.check(["true"], status=0)
    no_program_is_left(switch)


@user_root
def test_an_ordinary_user_is_told_when_roots_switch_does_not_admit_him(new_switch: NewSwitch) -> None:
    switch = new_switch()
    switch.control("up", "--socket-mode", "0600", status=0)
    done = switch.check(["true"], status=125)
    assert f"does not admit user {ORDINARY.uid}" in done.stderr
    assert "--socket-mode" in done.stderr


@user_root
def test_an_ordinary_user_takes_his_own_switch_else_roots_if_it_admits_him(
    new_switch: NewSwitch, python: str
) -> None:
    """`find` as in `run`, with another directory for root's: the machine's own /run/appswitch is not ours to use."""
    roots, own = new_switch(), new_switch()
    session = own.base / "session"
    session.mkdir()
    ORDINARY.give(session)
    script = (
        "import os\nfrom appswitch.switch import client, paths\n"
        f"paths.ROOTS = {str(roots.run_dir)!r}\n"
        f"found = client.find(None, {{'XDG_RUNTIME_DIR': {str(session)!r}}}, os.geteuid())\n"
        "print(found.run_dir if found else None)"
    )
    interpreter = str(Path(roots.command_line([])[0]).with_name("python"))

    def found() -> str:
        program = roots.start([interpreter, "-c", script], "find", ORDINARY)
        assert program.wait() == 0, program
        return program.output().strip()

    assert found() == "None"
    roots.control("up", "--socket-mode", "0600", status=0)
    assert found() == "None"
    roots.control("down", status=0)
    roots.up()
    assert found() == str(roots.run_dir)
    mine = f"{session}/appswitch"
    own.control("up", "--run-dir", mine, user=ORDINARY, status=0)
    assert found() == mine
    own.control("down", "--run-dir", mine, user=ORDINARY, status=0)
    assert found() == str(roots.run_dir)


@one_mode
def test_ctrl_c_while_it_waits_ends_it_without_a_word(switch: Switch) -> None:
    [supervisor] = [p["pid"] for p in switch.cli("status", "-o", "json")["processes"] if p["role"] == "supervisor"]
    os.kill(supervisor, signal.SIGSTOP)
    try:
        program = switch.run(["true"], name="never")
        # It has connected, and waits for its identity.
        wait_until(lambda: _polls(program.pid), lambda: "its waiting")
        program.send_signal(signal.SIGINT)
        assert program.wait() == -signal.SIGINT, "which a shell shows as 130"
    finally:
        os.kill(supervisor, signal.SIGCONT)
    assert program.errors() == ""
    no_program_is_left(switch)


def _polls(pid: int) -> bool:
    """Is it blocked in poll(2), number 7 on x86_64 and ppoll 73 on aarch64?"""
    try:
        return Path(f"/proc/{pid}/syscall").read_text().split()[0] in ("7", "73")
    except OSError:
        return False


@pytest.mark.skipif(MYSELF.uid != 0, reason="needs an executable that this user cannot read")
@pytest.mark.parametrize("mode", [m for m in modes.possible() if m.name != "root"], ids=str)
def test_a_program_that_cannot_be_read_is_refused_by_a_users_own_switch(switch: Switch) -> None:
    program = switch.base / "unreadable"
    program.write_bytes(Path("/bin/true").read_bytes())
    os.chown(program, 0, 0)
    program.chmod(0o711)
    own = switch.mode.switch_owner.uid != 0
    done = switch.check([str(program)], status=125 if own else 0)
    assert ("cannot be read by you" in done.stderr) == own


def test_starting_a_program_imports_no_library() -> None:
    """`run` imports the standard library only, and of that nothing big: its time is every program's."""
    script = "import sys, appswitch.cli.run; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({_source()!r}); {script}"],
                          capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "appswitch.trap.generator" in loaded
    heavy = {"lmdb", "msgpack", "dnslib", "argparse", "dataclasses", "asyncio", "logging", "subprocess", "shutil"}
    assert not loaded & heavy


def _source() -> str:
    import appswitch

    return str(Path(appswitch.__file__).parents[1])
