"""Command lines: what a command takes, reading it, and its help.

Small, because `appswitch run` waits for its import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

RUN_DIR_HELP = "directory of the switch (default: $APPSWITCH_RUN_DIR, else your own switch's)"


class UsageError(Exception):
    """The command line is wrong; one sentence."""


class Option(NamedTuple):
    """`metavar` empty: a flag without value. `choices`: the only values; `many`: may be given several times."""

    name: str
    metavar: str = ""
    help: str = ""
    choices: tuple[str, ...] = ()
    many: bool = False
    short: str = ""
    #: The value may be left out; it is given after an equals sign only.
    optional: bool = False


class Values:
    """What was given: the values of each option in order, and the words after the options."""

    def __init__(self, found: dict[str, list[str]], words: list[str]) -> None:
        self._found, self.words = found, words

    def flag(self, name: str) -> bool:
        return name in self._found

    def one(self, name: str) -> str | None:
        """The last value given."""
        return self._found[name][-1] if name in self._found else None

    def all(self, name: str) -> list[str]:
        return self._found.get(name, [])


class Command(NamedTuple):
    """`usage` is what follows the command's name; `words`: whether words may follow the options.

    `mixed`: whether options may follow words, too.
    """

    name: str
    usage: str
    summary: str
    options: tuple[Option, ...]
    main: Callable[[Values], int]
    details: str = ""
    words: bool = False
    #: Exit code for a wrong command line.
    wrong: int = 2
    mixed: bool = False


RUN_DIR = Option("--run-dir", "DIR", RUN_DIR_HELP)
OUTPUT = Option("--output", "FORMAT", "table or json (default: table)", ("table", "json"), short="-o")
HELP = Option("--help", "", "show this text", short="-h")


def read(command: Command, argv: Sequence[str]) -> Values | None:
    """The command line's values; None when help was asked for. UsageError when it is wrong.

    Options end at the first other word (unless the command takes them mixed), or at `--`.
    """
    known = {}
    for option in (*command.options, HELP):
        known[option.name] = option
        if option.short:
            known[option.short] = option
    found: dict[str, list[str]] = {}
    rest, words = list(argv), []
    while rest:
        if not rest[0].startswith("-") or rest[0] == "-":
            if not command.mixed:
                break
            words.append(rest.pop(0))
            continue
        word = rest.pop(0)
        if word == "--":
            break
        if word.startswith("--"):
            name, equals, value = word.partition("=")
        elif word[:2] in known and known[word[:2]].metavar:  # -ojson
            name, equals, value = word[:2], word[2:], word[2:]
        else:
            name, equals, value = word, "", ""
        wanted = known.get(name)
        if wanted is None:
            hint = suggestion(name, known) if name.startswith("--") else ""  # any letter is like some short option
            raise UsageError(f"there is no option {name}{hint}")
        if wanted is HELP:
            return None
        if wanted.optional:
            if equals and not value:
                raise UsageError(f"{name}= needs a value: {name}={wanted.metavar}")
        elif wanted.metavar:
            if not equals:
                if not rest or rest[0] == "--":
                    raise UsageError(f"{name} needs a value: {name} {wanted.metavar}")
                value = rest.pop(0)
            if wanted.choices and value not in wanted.choices:
                raise UsageError(f"{name} takes {_either(wanted.choices)}, not {value!r}")
        elif equals:
            raise UsageError(f"{name} takes no value")
        if wanted.name in found and not wanted.many:
            raise UsageError(f"{name} was given twice")
        found.setdefault(wanted.name, []).append(value)
    words += rest
    if words and not command.words:
        raise UsageError(f"there is no place for {words[0]!r}")
    return Values(found, words)


def suggestion(word: str, known: Iterable[str]) -> str:
    """` (did you mean …?)` if one of the known words is like it, else nothing."""
    import difflib  # here, for it is only mistakes that wait for its import

    like = difflib.get_close_matches(word[:80].lower(), list(known), 1)
    return f" (did you mean {like[0]}?)" if like else ""


def _either(choices: Sequence[str]) -> str:
    return f"{', '.join(choices[:-1])} or {choices[-1]}"


def help_text(command: Command) -> str:
    """What `--help` shows."""
    lines = [f"Usage: appswitch {command.name} {command.usage}".rstrip(), "", command.summary]
    if command.details:
        lines += ["", command.details.strip("\n")]
    shown = []
    for option in (*command.options, HELP):
        names = f"{option.short}, {option.name}" if option.short else option.name
        value = f"[={option.metavar}]" if option.optional else f" {option.metavar}"
        shown.append((f"{names}{value}".rstrip(), option.help + (" (repeatable)" if option.many else "")))
    width = max(len(left) for left, _ in shown)
    lines += ["", "Options:", *(f"  {left:<{width}}  {right}" for left, right in shown)]
    return "\n".join(lines)
