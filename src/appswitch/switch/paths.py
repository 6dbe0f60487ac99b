"""Where a switch lives: its run directory, what is in it, and whose it may be.

    control.sock   where commands and starting programs connect
    switch.lock    held (flock(2)) by the supervisor while it lives; its process id
    switch.log     what its processes had to say
    table/ stats/ state/ l/   the service table, counters, what outlives a worker, listeners' sockets
    shared/        virtual IPs that several programs have: their UDP binds wait for the relay
    router.sock    where writers of the table tell the router what they changed
    udp.sock       where workers tell the relay which UDP sockets were bound
    dns.sock resolv.conf      the resolver, and what programs see as /etc/resolv.conf
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

ROOTS = "/run/appswitch"
ENVIRONMENT = "APPSWITCH_RUN_DIR"
#: sun_path holds 108 bytes, the last of them a zero (unix(7)).
_SUN_PATH = 107
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_SOCKETS = ("control.sock", "dns.sock", "dns.sock.new", "udp.sock", "router.sock")
_KNOWN_FILES = (*_SOCKETS, "resolv.conf", "switch.log", "switch.log.old")
_KNOWN_DIRECTORIES = ("table", "stats", "state", "l", "shared")


class SwitchError(Exception):
    """The switch cannot do what was asked; the text is one sentence that says why and what to do."""


class RunDir:
    """A run directory's paths."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        try:
            self.path = os.path.abspath(path)
        except FileNotFoundError:
            raise SwitchError(
                f"the run directory {path} means nothing here, for the current directory was removed: "
                "give its whole path"
            ) from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunDir) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)

    def __str__(self) -> str:
        return self.path

    @property
    def control(self) -> str:
        return f"{self.path}/control.sock"

    @property
    def lock(self) -> str:
        return f"{self.path}/switch.lock"

    @property
    def log(self) -> str:
        return f"{self.path}/switch.log"

    @property
    def table(self) -> str:
        return f"{self.path}/table"

    @property
    def stats(self) -> str:
        return f"{self.path}/stats"

    @property
    def state(self) -> str:
        return f"{self.path}/state"

    @property
    def pids(self) -> str:
        return f"{self.path}/state/pids"

    @property
    def resolv_conf(self) -> str:
        return f"{self.path}/resolv.conf"


def own(environ: Mapping[str, str], uid: int) -> RunDir:
    """The directory of this user's own switch when none is named."""
    if uid == 0:
        return RunDir(ROOTS)
    session = environ.get("XDG_RUNTIME_DIR", "")
    try:
        if os.path.isabs(session) and os.stat(session).st_uid == uid:
            return RunDir(f"{session}/appswitch")
    except OSError:
        pass
    return RunDir(f"/tmp/appswitch-{uid}")


def named(option: str | None, environ: Mapping[str, str]) -> RunDir | None:
    """The directory that the user named, by `--run-dir` or in the environment. SwitchError."""
    if option == "":
        raise SwitchError("--run-dir needs the name of a directory: give one, or leave it out")
    path = option or environ.get(ENVIRONMENT)
    return RunDir(path) if path else None


def check_path(run_dir: RunDir) -> None:
    """SwitchError when the control socket's path does not fit into a socket address, or LMDB would not take it."""
    try:
        run_dir.path.encode()
    except UnicodeEncodeError:
        raise SwitchError(f"the run directory's path {run_dir} is not UTF-8: choose another with --run-dir") from None
    excess = len(os.fsencode(run_dir.control)) - _SUN_PATH
    if excess > 0:
        raise SwitchError(
            f"the run directory's path {run_dir} is {excess} bytes too long for a socket's address (unix(7)): "
            "choose a shorter one with --run-dir"
        )


def check_owner(run_dir: RunDir, uid: int, *, shared: bool) -> None:
    """SwitchError unless the directory is this user's; with `shared`, root's will do as well.

    Whoever owns the directory answers for the switch in it, and sees all that its programs do. Root may look
    at anybody's. FileNotFoundError when there is none.
    """
    found = os.lstat(run_dir.path)
    if not stat.S_ISDIR(found.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "no directory"
        raise SwitchError(f"{run_dir} is {what}: choose another run directory with --run-dir")
    allowed = {uid, 0} if shared else {uid}
    if found.st_uid not in allowed and not (shared and uid == 0):
        raise SwitchError(
            f"{run_dir} belongs to user {found.st_uid}, not to user {uid}: choose another directory with --run-dir"
        )


def check_private(run_dir: RunDir) -> None:
    """SwitchError when others can write to the directory: they can put a switch of theirs into this one's place."""
    mode = os.stat(run_dir.path).st_mode
    if mode & _OTHERS_WRITE:
        raise SwitchError(
            f"others can write to {run_dir} (mode {mode & 0o7777:o}), so that its switch may be anybody's: "
            f"have its owner `chmod go-w {run_dir}`, or choose another directory with --run-dir"
        )


def prepare(run_dir: RunDir, uid: int) -> None:
    """Make the directory, or see that the one there is this user's and was made by a switch or is empty."""
    check_path(run_dir)
    try:
        os.mkdir(run_dir.path, 0o700)
    except FileExistsError:
        check_owner(run_dir, uid, shared=False)
    except OSError as error:
        raise SwitchError(
            f"cannot make the run directory {run_dir} ({error.strerror}): choose another with --run-dir"
        ) from None
    try:
        found = os.listdir(run_dir.path)
        if found and "switch.lock" not in found:
            raise SwitchError(
                f"{run_dir} holds other files: give --run-dir a directory that is empty or does not exist yet"
            )
        # Others pass through root's to its control socket, whose own mode says who may connect.
        os.chmod(run_dir.path, 0o755 if uid == 0 else 0o700)
        for name in os.listdir(run_dir.path):
            _check_owner_of_file(f"{run_dir}/{name}", uid)
    except FileNotFoundError:
        pass  # a switch that goes down removes it just now: whoever opens the lock begins anew
    except OSError as error:
        raise SwitchError(f"cannot use the run directory {run_dir}: {error.strerror}") from None


def _check_owner_of_file(path: str, uid: int) -> None:
    """SwitchError when somebody else has put it into a directory that others could write to."""
    try:
        owner = os.lstat(path).st_uid
    except FileNotFoundError:
        return
    if owner != uid:
        raise SwitchError(
            f"{path} belongs to user {owner}, not to user {uid}: remove it, or choose another directory with --run-dir"
        )


def wipe(run_dir: RunDir, *, keep_log: bool) -> None:
    """Remove what a former switch left, and nothing else; with `keep_log`, its log stays as switch.log.old.

    SwitchError when something cannot be removed.
    """
    import shutil  # here, for `appswitch run` need not wait for it

    at = run_dir.log
    try:
        if keep_log and os.path.exists(run_dir.log):
            os.replace(run_dir.log, run_dir.log + ".old")
        for name in _KNOWN_FILES:
            at = f"{run_dir}/{name}"
            if os.path.lexists(at) and not (keep_log and name == "switch.log.old"):
                os.unlink(at)
        for name in _KNOWN_DIRECTORIES:
            at = f"{run_dir}/{name}"
            if os.path.lexists(at):
                shutil.rmtree(at)
    except FileNotFoundError:
        pass  # somebody else removes it all
    except OSError as error:
        raise SwitchError(
            f"{at}, which is in the way of a new switch, cannot be removed ({error.strerror or error}): remove it"
        ) from None


def furnish(run_dir: RunDir) -> None:
    """Make the directories below; only this user may enter them."""
    for name in _KNOWN_DIRECTORIES:
        os.mkdir(f"{run_dir}/{name}", 0o700)


def is_lock(run_dir: RunDir, fd: int) -> bool:
    """Is this descriptor that of the lock file there?"""
    try:
        found = os.stat(run_dir.lock)
    except FileNotFoundError:
        return False
    ours = os.fstat(fd)
    return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)


def remove(run_dir: RunDir, lock: int) -> None:
    """Remove all of it that is ours, who hold `lock`; the directory itself stays when something else is in it."""
    if not is_lock(run_dir, lock):
        return  # it was removed already, and may be another switch's by now
    try:
        wipe(run_dir, keep_log=False)
        os.unlink(run_dir.lock)
        os.rmdir(run_dir.path)
    except (OSError, SwitchError):
        pass
