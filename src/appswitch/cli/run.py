"""`appswitch run`: become a program under the switch. Imports nothing beyond the standard library but our own."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..switch import client, wire
from ..switch.client import Connection
from ..switch.paths import SwitchError
from ..trap import generator
from ..trap.surroundings import Plan
from ..trap.tracing.sink import check as check_sink
from .main import complain, leave_out_features
from .options import RUN_DIR, Command, Option, UsageError, Values

if TYPE_CHECKING:
    from ..linux.user import User

_OURS, _NOT_EXECUTABLE, _NOT_FOUND = 125, 126, 127
#: Seconds that a switch may take to start.
_START = 30.0
_TRIES = 3
#: What of a command line is sent along, for `appswitch ps`.
_SHOWN = 4096


def main(values: Values) -> int:
    if not values.words:
        raise UsageError("there is no program to run: appswitch run [OPTIONS] -- CMD [ARG]...")
    if sys.platform != "linux":
        raise SwitchError("AppSwitch needs Linux: run it there")
    argv = values.words
    leave_out_features()
    user = _user(values.one("--user"))
    try:
        path = generator.find_program(argv[0], os.environ)
        generator.check_nested()
        request = _request(values, user)
        switch, ours = _register(values.one("--run-dir"), request, user)
        with switch:
            environment = generator.inherited_environment()
            if user is not None:
                environment = _become(user, environment)
                path = generator.find_program(argv[0], os.environ)  # by this user's rights
            _check_readable(path, switch)
            _enter(switch, ours, values.one("--trace"))
            generator.become(path, argv, environment)
    except generator.NotFound as error:
        hint = ": options go before the program" if "--" in argv and "/" not in argv[0] else ""
        return complain(f"{error}{hint}", _NOT_FOUND)
    except generator.NotExecutable as error:
        return complain(str(error), _NOT_EXECUTABLE)
    except generator.GeneratorError as error:
        return complain(str(error), _OURS)


def _user(text: str | None) -> User | None:
    """Whom --user names. SwitchError."""
    if text is None:
        return None
    if os.geteuid() != 0:
        raise SwitchError("only root can run a program as another user: leave --user out, or run this as root")
    from ..linux import user  # here, for hardly a run needs it

    try:
        return user.find(text)
    except LookupError as error:
        raise SwitchError(f"--user: {error.args[0]}") from None


def _become(who: User, environment: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Be this user from now on; the program's environment. SwitchError."""
    from ..linux import user

    try:
        user.become(who)
    except OSError as error:
        raise SwitchError(
            f"cannot become user {who.uid} ({error.strerror}): root needs CAP_SETUID and CAP_SETGID for --user, "
            "and a container a mapping for that user"
        ) from None
    return user.environment(who, environment)


def _request(values: Values, user: User | None) -> wire.Message:
    """What is asked of the switch: an identity."""
    return {
        "op": "register",
        "name": values.one("--name"),
        "ip": values.one("--ip"),
        "tags": values.all("--tag"),
        "options": {
            name.replace("-", "_"): given
            for name in ("transport", "balance", "egress", "wait-timeout")
            if (given := values.one(f"--{name}")) is not None
        }
        | {"wait_for": values.all("--wait-for"), "expose": values.all("--expose")},
        "argv": _shown(values.words),
    } | ({} if user is None else {"user": user.uid})


def _register(
    run_dir: str | None, request: wire.Message, user: User | None
) -> tuple[Connection, wire.Message]:
    """(the switch, the identity that it gave); begun anew when the switch's supervisor dies over it."""
    for _ in range(_TRIES):
        switch = _switch(run_dir, request)
        try:
            _check_master(switch, user)
            return switch, switch.request(request)
        except client.Ended as error:
            switch.close()
            ended = error
    raise ended


def _check_master(switch: Connection, user: User | None) -> None:
    """Whoever runs a switch steers its programs: root's must not be a user's, whatever that switch may say."""
    uid = os.geteuid() if user is None else user.uid
    if switch.uid not in (0, uid):
        raise SwitchError(
            f"the switch in {switch.run_dir} runs as user {switch.uid}, who may not serve a program of user {uid}: "
            "run the program as that user, or under a switch of root's or your own"
        )


def _enter(switch: Connection, ours: wire.Message, trace_to: str | None) -> None:
    """Become trapped, and wait until a worker has taken this program over."""
    plan = Plan(
        user=os.geteuid() != 0,
        addresses=ours["addresses"],
        nameserver=ours["nameserver"],
        resolv_conf=ours["resolv_conf"],
    )
    trace = _trace(trace_to, switch.uid)
    handover = generator.confine(plan)
    counts = handover.counts | {"trace": len(trace)}
    switch.request({"op": "attach", "device": handover.device, "fds": counts}, handover.fds + trace)


def _trace(wanted: str | None, uid: int) -> list[int]:
    """A descriptor for the lines of a trace, if there is to be one: of standard error, or of a file.

    `uid`: who is to write them.
    """
    if wanted is None:
        return []
    how = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        if not wanted and sys.stderr is None:  # closed when we were started, and another file by now
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return [check_sink(os.open(wanted, how, 0o666) if wanted else os.dup(2), uid)]
    except OSError as error:
        where = wanted or "standard error"
        raise SwitchError(
            f"the trace cannot be written to {where} ({error.strerror}): name a file with --trace=FILE"
        ) from None


def _shown(argv: list[str]) -> list[str]:
    room, shown = _SHOWN, []
    for word in argv:
        shown.append(word[:room])
        room -= len(word) + 1
        if room <= 0:
            break
    return shown


def _check_readable(path: str, switch: Connection) -> None:
    """The kernel hides a program whose file its user cannot read from everybody but root (ptrace(2))."""
    if switch.uid != 0 and not os.access(path, os.R_OK):
        raise generator.GeneratorError(
            f"{path} cannot be read by you, so your own switch cannot serve it: "
            "have it made readable, or run it under a switch of root's"
        )


def _switch(run_dir: str | None, request: wire.Message) -> Connection:
    """The switch to run under; started in the background when none is up, unless it would refuse the request."""
    uid = os.geteuid()
    found = client.find(run_dir, os.environ, uid)
    if found is not None:
        return found
    home = client.home(run_dir, os.environ, uid)
    _check(request)
    _start(home.path)
    found = client.connect(home, uid=uid)
    if found is None:
        raise SwitchError(f"a switch was started but has gone again: see {home.log}")
    return found


def _check(request: wire.Message) -> None:
    from ..model.identity import Refusal  # here, for a switch that is up does it
    from ..switch.registry import check_request

    try:
        check_request(request)
    except Refusal as refusal:
        raise SwitchError(str(refusal)) from None


def _start(run_dir: str) -> None:
    """`appswitch up`, in a process of its own, whatever this one's current directory holds (python3 -P)."""
    import subprocess  # here, for most runs need not wait for it

    script = sys.argv[0]
    ours = os.path.basename(script) == "appswitch" and os.access(script, os.R_OK)
    how = [script] if ours else ["-m", "appswitch.cli.main"]
    command = [sys.executable, "-P", *how, "up", "--run-dir", run_dir]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=_START
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SwitchError(f"no switch is up and none could be started ({error}): try `appswitch up`") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().removeprefix("appswitch: ")
        raise SwitchError(said or "no switch is up and none could be started: try `appswitch up`")


COMMAND = Command(
    "run",
    "[OPTIONS] [--] CMD [ARG]...",
    "Start a program with an identity of its own: this process becomes the program.",
    (
        Option("--name", "NAME", "the program's name, by which others reach it"),
        Option("--ip", "VIP", "its virtual IPv4 or IPv6 address (default: derived from the name)"),
        Option("--tag", "KEY=VALUE", "a tag; those with `group` tags must share a value to connect", many=True),
        Option(
            "--balance",
            "METHOD",
            "order of its instances: round-robin or random, this host's first, or spread (round-robin over all hosts)",
            ("round-robin", "random", "spread"),
        ),
        Option("--transport", "KIND", "how it connects on this host: auto, tcp or unix", ("auto", "tcp", "unix")),
        Option("--wait-for", "NAME[:PORT]", "hold its connects to this service until it is there", many=True),
        Option("--wait-timeout", "SECONDS", "how long a connect is held at most (default: 60)"),
        Option("--expose", "[[ADDRESS:]HOSTPORT:]PORT", "publish its port at a port of this host", many=True),
        Option("--trace", "FILE", "show its trapped calls on standard error, or write them to a file", optional=True),
        Option("--egress", "RULE", "allow or deny connections to addresses outside AppSwitch", ("allow", "deny")),
        Option("--user", "USER[:GROUP]", "as root: run it as this user, by name or number"),
        RUN_DIR,
    ),
    main,
    """
With neither --name nor --ip the program is a client only: it gets a link-local address.
A connect that is held returns when the service is there, also on a non-blocking socket; after the time-out it fails
with ECONNREFUSED, or EHOSTUNREACH when nobody has the name. Names that are waited for resolve before they exist.
--expose 8080:80 lets everybody who reaches this host's port 8080 connect to the program's port 80, on all addresses
of the host unless one is given: 127.0.0.1:8080:80, [::1]:8080:80. It is open while the program listens. Programs of one
name may share it.
--trace shows a line for each call that the switch answers, when it is answered: time, thread, call, result, what was
decided, and the microseconds that the switch took. A reader that is too slow loses lines, and is told how many.
When no switch is up, one is started in the background: your own, unless root's admits you.
--user gives the program that user's groups, HOME, SHELL, USER and LOGNAME, as su does; XDG_RUNTIME_DIR is unset, the
rest of the environment stays. Name and address then belong to that user, who need not be admitted to the switch.

Exit codes: those of CMD; 125 when AppSwitch itself failed, 126 when CMD cannot be executed, 127 when it is
not found.""",
    words=True,
    wrong=_OURS,
)

