"""Reaching a switch from a command: which one, and one request after the other.

Pure standard library: `appswitch run` imports it.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Mapping, Sequence

from ..model.documents import indented
from . import paths, wire
from .paths import RunDir, SwitchError

#: Seconds that any one answer may take.
TIMEOUT = 20.0


class Ended(SwitchError):
    """The switch's supervisor died or was replaced before it answered; nothing was done for this connection's sake."""


class Connection:
    """A connection to the switch in `run_dir`, whose supervisor runs as user `uid`."""

    def __init__(self, sock: socket.socket, run_dir: RunDir) -> None:
        self._sock = sock
        self.run_dir = run_dir
        _, self.uid = wire.credentials(sock)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._sock.close()

    def request(self, message: wire.Message, fds: Sequence[int] = ()) -> wire.Message:
        """Ask; the reply of a request that was granted. SwitchError when it was refused, or nobody answers; Ended."""
        return self._granted(self._decoded(self._exchange(message, fds)))

    def document(self, message: wire.Message) -> str:
        """The same; the result of it alone, as JSON with an indent of two."""
        body = self._exchange({**message, "indented": True}, ())
        text = wire.result(body)
        return text if text is not None else indented(self._granted(self._decoded(body))["result"])

    def _exchange(self, message: wire.Message, fds: Sequence[int]) -> bytes:
        try:
            data = wire.encode(message)
        except wire.Malformed:
            raise SwitchError("this is too much for one request: use fewer, or shorter, names and tags") from None
        try:
            wire.send_all(self._sock, data, fds)
            return wire.receive_body(self._sock)
        except TimeoutError:
            raise _no_answer(self.run_dir) from None
        except (OSError, wire.Malformed) as error:
            raise self._unanswered(error) from None

    def _decoded(self, body: bytes) -> wire.Message:
        try:
            return wire.decode(body)
        except wire.Malformed as error:
            raise self._unanswered(error) from None

    def _unanswered(self, error: Exception) -> SwitchError:
        ended = isinstance(error, (wire.Closed, ConnectionError))
        return (Ended if ended else SwitchError)(
            f"the switch in {self.run_dir} did not answer ({'it ended' if ended else error}): "
            f"see {self.run_dir.log}, then try again"
        )

    def _granted(self, reply: wire.Message) -> wire.Message:
        if not reply.get("ok"):
            raise SwitchError(str(reply.get("error") or "the switch refused without giving a reason"))
        return reply

    def wait_end(self) -> None:
        """Return when the switch closes the connection; TimeoutError."""
        try:
            while self._sock.recv(4096):
                pass
        except ConnectionError:
            pass


def connect(run_dir: RunDir, *, uid: int) -> Connection | None:
    """A connection to the switch there; None when none is up.

    SwitchError when it is or may be somebody else's, does not admit this user, or the path cannot be one;
    PermissionError never comes out.
    """
    paths.check_path(run_dir)
    try:
        paths.check_owner(run_dir, uid, shared=True)
    except OSError as error:
        if isinstance(error, PermissionError):
            raise _not_admitted(run_dir, uid) from None
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # A full queue is waited for by blocking sockets alone (unix(7)): no timeout of Python's before that.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(TIMEOUT), 0))
        sock.connect(run_dir.control)
        sock.settimeout(TIMEOUT)
        connection = Connection(sock, run_dir)
    except BlockingIOError:
        sock.close()
        raise _no_answer(run_dir) from None
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except OSError as error:
        sock.close()
        if isinstance(error, PermissionError):
            raise _not_admitted(run_dir, uid) from None
        raise SwitchError(f"cannot connect to {run_dir.control}: {error.strerror or error}") from None
    try:
        paths.check_private(run_dir)
    except SwitchError:
        sock.close()
        raise
    if uid and connection.uid not in (0, uid):
        sock.close()
        raise SwitchError(
            f"the switch in {run_dir} runs as user {connection.uid}: use another with --run-dir, "
            "for whoever runs a switch sees all that its programs do"
        )
    return connection


def find(option: str | None, environ: Mapping[str, str], uid: int) -> Connection | None:
    """The switch to use: the one named, else this user's own, else root's when it admits this user; None: none."""
    chosen = paths.named(option, environ)
    if chosen is not None:
        return connect(chosen, uid=uid)
    connection = connect(paths.own(environ, uid), uid=uid)
    if connection is None and uid != 0:
        try:
            connection = connect(RunDir(paths.ROOTS), uid=uid)
        except SwitchError:
            return None
    return connection


def home(option: str | None, environ: Mapping[str, str], uid: int) -> RunDir:
    """Where this user's switch is, or would be started."""
    return paths.named(option, environ) or paths.own(environ, uid)


def _no_answer(run_dir: RunDir) -> SwitchError:
    return SwitchError(
        f"the switch in {run_dir} does not answer: see {run_dir.log}, or end it with `appswitch down --force`"
    )


def _not_admitted(run_dir: RunDir, uid: int) -> SwitchError:
    return SwitchError(
        f"the switch in {run_dir} does not admit user {uid}: use one of your own with --run-dir, "
        "or have its owner start it with --socket-mode 0666"
    )


def current_uid() -> int:
    """The user as whom this command acts."""
    return os.geteuid()
