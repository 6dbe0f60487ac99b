"""The `appswitch` command: picks the command's module and runs it; every failure is one sentence."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from ..linux import features
from ..switch.paths import SwitchError
from . import options
from .options import Command, UsageError

#: Command → what it is for. Each has its module here, with a `COMMAND`.
COMMANDS = {
    "run": "start a program with an identity of its own",
    "up": "start the switch (run does that by itself)",
    "down": "end the switch",
    "status": "the switch: its processes and counters",
    "ps": "programs, or their connections",
    "services": "who listens, and where",
    "denials": "connections that policy refused, and why",
    "inspect": "all that is known of one service or program",
    "resolve": "what a connect to a name would come to, and why",
    "token": "what another host needs to join this one's cluster",
    "key": "list or change the cluster's keys",
    "join": "make the running switch a member of a cluster",
    "members": "the hosts of the cluster",
    "leave": "take the switch out of its cluster",
    "config": "settings, and where each comes from",
    "version": "print the version",
}
#: What other tools call them.
_ELSEWHERE = {
    "start": "up",
    "stop": "down",
    "exec": "run",
    "list": "ps",
    "ls": "ps",
    "top": "ps",
    "info": "status",
    "nodes": "members",
    "dig": "resolve",
    "lookup": "resolve",
}
#: Characters that are shown of a word of an error message.
_WORD = 300


def overview() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "Usage: appswitch COMMAND ...",
            "",
            "Gives unmodified programs an identity of their own: a name, a virtual IP and tags, by which they",
            "find each other wherever they run.",
            "",
            "  appswitch run --name web -- python3 -m http.server 80",
            "  appswitch run -- curl http://web/",
            "",
            "Commands:",
            *(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()),
            "",
            "`appswitch COMMAND --help` tells more.",
        ]
    )


def main() -> int:
    """The console script."""
    # Ctrl-C ends us as it ends any program: nothing that we leave half done outlives us (130 in the shell).
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _fill_standard_descriptors()
    if isinstance(sys.stdout, io.TextIOWrapper):  # the locale's encoding may not have all that is printed
        sys.stdout.reconfigure(errors="backslashreplace")
    argv = sys.argv[1:]
    if argv[:1] == ["help"] and len(argv) > 1:
        argv = [argv[1], "--help"]
    if not argv or argv[0] in ("--help", "-h", "help"):
        return show(overview())
    if argv[0] == "--version":
        argv[0] = "version"
    if argv[0] not in COMMANDS:
        return complain(f"there is no command {argv[0]!r}{_hint(argv)}: see `appswitch --help`", 2)
    command: Command = import_module(f"{__package__}.{argv[0]}").COMMAND
    try:
        values = options.read(command, argv[1:])
        if values is None:
            return show(options.help_text(command))
        return command.main(values)
    except UsageError as error:
        return complain(f"{error}; see `appswitch {command.name} --help`", command.wrong)
    except SwitchError as error:
        return complain(str(error), 125 if command.name == "run" else 1)
    except Exception as error:
        if os.environ.get("APPSWITCH_DEBUG"):
            raise
        what = f"{type(error).__name__}: {error}"
        return complain(
            f"`appswitch {command.name}` failed unexpectedly ({what}): please report it, with what "
            "APPSWITCH_DEBUG=1 shows",
            125 if command.name == "run" else 1,
        )


def _fill_standard_descriptors() -> None:
    """What the caller has closed must not become a socket or file of ours, for we write to 1 and 2; gone at exec."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)  # the lowest number that is free


def _hint(argv: Sequence[str]) -> str:
    command = next((word for word in argv if word in COMMANDS), None)
    if argv[0].startswith("-") and command:
        return f" (options come after the command, as in `appswitch {command} {argv[0]} …`)"
    if argv[0] in _ELSEWHERE:
        return f" (did you mean {_ELSEWHERE[argv[0]]}?)"
    return options.suggestion(argv[0], COMMANDS)


def leave_out_features() -> None:
    """Do without the kernel's features that the environment names, for tests. SwitchError when there are no such."""
    try:
        features.leave_out(os.environ.get(features.ENVIRONMENT, ""))
    except ValueError as error:
        raise SwitchError(f"{error}: correct or unset it") from None


def tell(text: str) -> int:
    """Say what was done; it is done, whether or not anybody can read that."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 0


def show(text: str) -> int:
    """Print to standard output, whose reader may have gone."""
    try:
        if sys.stdout is None:  # closed by the caller
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains when it ends
        gone = isinstance(error, BrokenPipeError)
        return 1 if gone else complain(f"cannot write to standard output: {error.strerror}", 1)
    return 0


def complain(sentence: str, code: int) -> int:
    """Say what is wrong on standard error; returns `code`."""
    try:
        os.write(2, f"appswitch: {one_line(sentence)}\n".encode(errors="backslashreplace"))
    except OSError:
        pass
    return code


def one_line(sentence: str) -> str:
    """The sentence as a line that can be read and commands no terminal, whatever words of the user's are in it."""
    words = (word if len(word) <= _WORD else word[:_WORD] + "…" for word in sentence.split(" "))
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in " ".join(words))


if __name__ == "__main__":
    sys.exit(main())
