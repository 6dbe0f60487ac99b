"""Bringing a switch up: one only for a run directory, in the background or in the foreground."""

from __future__ import annotations

import fcntl
import logging
import os
import resource
import signal
from collections.abc import Callable
from functools import partial

from .. import __version__
from . import paths
from .keeper import Keeper, inherited, tell
from .kept import Item, Kept, Line
from .paths import RunDir, SwitchError
from .processes import close_others
from .registry import Registry
from .settings import Settings
from .supervisor import Supervisor

log = logging.getLogger("appswitch.supervisor")

_FORMAT = "%(asctime)s %(levelname)s %(name)s[%(process)d]: %(message)s"


class _Log(logging.Handler):
    """Standard error, a line at a write: the switch's processes share it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            os.write(2, (self.format(record) + "\n").encode(errors="backslashreplace"))
        except OSError:
            pass  # the disk is full: the switch goes on


def occupy(run_dir: RunDir, uid: int) -> int | None:
    """Make the run directory, take the lock that its supervisor holds for life, and clear what a dead switch left.

    Returns the lock file's descriptor; None while another has it. SwitchError when the directory cannot be used.
    """
    while True:
        paths.prepare(run_dir, uid)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(run_dir.lock, flags, 0o600)
        except FileNotFoundError:
            continue  # a switch that went down has just removed the directory
        except OSError as error:
            raise SwitchError(
                f"cannot open {run_dir.lock} ({error.strerror}): see to it, or choose another directory with --run-dir"
            ) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if paths.is_lock(run_dir, fd):
                paths.wipe(run_dir, keep_log=True)
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        os.close(fd)


def serve(settings: Settings, lock: int, level: int, ready: Callable[[], None]) -> None:
    """Be the switch, with the keeper in this process, until it goes down; log to standard error.

    SwitchError when it does not come up; `ready` is called when it has.
    """
    logging.basicConfig(handlers=[_Log()], level=level, format=_FORMAT)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    kept = {"lock": Item({}, [lock]), "settings": Item(settings.document() | {"level": level})}
    Keeper(partial(_supervise, settings), kept).begin(ready)


def succeed(memory: int) -> None:
    """Be the keeper in place of another version's (`keeper.inherited`), until the switch goes down."""
    kept, line = inherited(memory)
    try:
        document = kept["settings"].document
        logging.basicConfig(handlers=[_Log()], level=document["level"], format=_FORMAT)
        settings = Settings.of(document)
        Registry(settings.network).resume(kept)  # whatever cannot be understood is found now
    except Exception as error:
        log.error("the running switch is not understood: %r", error)
        tell(line, {"op": "refused", "reason": f"it does not understand the running switch ({error!r})"})
        return
    os.chdir(settings.run_dir.path)
    log.info("version %s takes over", __version__)
    tell(line, {"op": "succeeded"})
    Keeper(partial(_supervise, settings), kept).go_on(line)


def _supervise(settings: Settings, kept: Kept, line: Line) -> None:
    """Be the supervisor, in this process."""
    supervise = partial(_supervise, settings)
    supervisor = Supervisor(settings, kept, line, lambda kept, line: Keeper(supervise, kept).go_on(line))
    if "end" in kept:
        supervisor.finish()
        return
    try:
        supervisor.open()
    except SwitchError as error:
        supervisor.fail(str(error))
        return
    supervisor.run()


def serve_in_background(settings: Settings, lock: int, level: int) -> None:
    """Start the switch detached from this process and terminal; returns when it serves. SwitchError if it does not."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a caller that ignores it would leave nothing to wait for
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.close(read)
            os.setsid()
            if os.fork() == 0:
                _be_daemon(settings, lock, level, write)
        finally:
            os._exit(0)
    os.close(write)
    os.close(lock)
    os.waitpid(child, 0)
    with open(read, "rb") as pipe:
        said = pipe.read()
    if said != b"up":
        reason = said.decode(errors="replace") or f"the switch could not be started: see {settings.run_dir.log}"
        raise SwitchError(reason)


def _be_daemon(settings: Settings, lock: int, level: int, report: int) -> None:
    """In the detached process: `report` is told `up`, or why not."""

    def ready() -> None:
        os.write(report, b"up")
        os.close(report)

    code = 1
    try:
        # Out of the way of the standard descriptors, some of which may have been closed.
        report, lock = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (report, lock))
        close_others({0, 1, 2, report, lock})
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        for number, (path, mode) in enumerate((("/dev/null", os.O_RDWR), (settings.run_dir.log, flags))):
            fd = os.open(path, mode, 0o600)
            os.dup2(fd, number)
            if fd > 2:
                os.close(fd)
        os.dup2(1, 2)
        serve(settings, lock, level, ready)
        code = 0
    except SwitchError as error:
        paths.remove(settings.run_dir, lock)
        _report(report, str(error))
    except Exception as error:
        log.exception("the switch has failed")
        _report(report, f"the switch could not be started ({error}): see {settings.run_dir.log}")
    os._exit(code)


def _report(fd: int, text: str) -> None:
    try:
        os.write(fd, text.encode(errors="backslashreplace"))
    except OSError:
        pass  # it was up already
