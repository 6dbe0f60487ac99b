"""Whatever is written on a command line, in the environment or in a file: done, or one sentence and an exit code."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appswitch.cli import config, options, up
from appswitch.cli import main as cli_main
from appswitch.cli.options import Command, UsageError
from appswitch.model import number
from appswitch.model.identity import Refusal, check_address, check_name, check_tags
from appswitch.switch import membership
from appswitch.switch.membership import Wish
from appswitch.switch.paths import RunDir, SwitchError
from appswitch.switch.registry import check_request

COMMANDS: list[Command] = [
    __import__(f"appswitch.cli.{name}", fromlist=["COMMAND"]).COMMAND for name in cli_main.COMMANDS
]
#: What arguments can be: any bytes but zero, undecodable ones as surrogates.
WORDS = st.text(st.characters(exclude_characters="\0"), max_size=30) | st.binary(max_size=8).map(
    lambda data: os.fsdecode(data.replace(b"\0", b""))
)
#: Texts that are almost right.
NEARLY = st.from_regex(r"[0-9a-z.:%/\[\]_=,-]{0,20}", fullmatch=True) | WORDS
OPTIONS = sorted({option.name for command in COMMANDS for option in command.options} | {"--help", "-o", "-h", "--"})


def sentence(text: str) -> None:
    """It is one, and short enough to be read."""
    assert text
    assert len(cli_main.one_line(text)) < 600
    assert "Traceback" not in text


def told(work: Callable[..., object], *args: object) -> object:
    """What it gives, or None when it refused in a sentence; whatever else it raises is a bug."""
    try:
        return work(*args)
    except (UsageError, SwitchError, Refusal) as error:
        sentence(str(error))
        return None


# pure -------------------------------------------------------------------------------------------------------


@given(st.sampled_from(COMMANDS), st.lists(st.sampled_from(OPTIONS) | NEARLY, max_size=6))
def test_any_command_line_is_read_or_refused(command: Command, words: list[str]) -> None:
    told(options.read, command, words)


MANY_DIGITS = st.integers(4000, 6000).map("9".__mul__)
LISTS = ("wait_for", "expose")


@given(
    st.sampled_from(["name", "ip", "tags", "wait_timeout", "transport", "balance", "egress", *LISTS]),
    NEARLY | MANY_DIGITS | MANY_DIGITS.map("x:{}".format) | MANY_DIGITS.map("80:{}".format),
)
def test_any_value_of_an_option_of_run_is_taken_or_refused(name: str, text: str) -> None:
    message: dict[str, Any] = {"name": text, "ip": text, "tags": [text]}
    if name in message:
        told(check_request, {name: message[name]})
    else:
        told(check_request, {"name": "web", "options": {name: [text] if name in LISTS else text}})


@pytest.fixture(scope="module")
def no_config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment without settings of this machine's."""
    file = tmp_path_factory.mktemp("config") / "empty.toml"
    file.touch()
    return {"APPSWITCH_CONFIG": str(file)}


@given(st.dictionaries(st.sampled_from([option.name for option in up.COMMAND.options if option.metavar]), NEARLY))
def test_any_value_of_an_option_of_up_is_taken_or_refused(no_config: dict[str, str], given: dict[str, str]) -> None:
    words = [f"{name}={text}" for name, text in given.items() if name not in ("--run-dir", "--config")]
    values = told(options.read, up.COMMAND, words)
    if isinstance(values, options.Values):
        told(read_settings, values, no_config)


def read_settings(values: options.Values, environ: dict[str, str]) -> None:
    """What `up` does before it starts anything."""
    found = config.collect(values, environ, 1000)
    up._settings(found, RunDir("/nonexistent/run"), 1000)
    membership.resolve(found.wish(), None, lambda: "this-host")


@given(st.dictionaries(st.sampled_from([*Wish.__dataclass_fields__]), NEARLY))
def test_any_wish_for_a_cluster_is_granted_or_refused(given: dict[str, str]) -> None:
    told(lambda: membership.resolve(Wish(**given), None, lambda: "this-host"))


SETTINGS = [option.name.removeprefix("--") for option in config.SETTINGS]


@given(st.dictionaries(st.sampled_from(SETTINGS), NEARLY))
def test_any_environment_is_taken_or_refused(no_config: dict[str, str], given: dict[str, str]) -> None:
    environ = {f"APPSWITCH_{name.upper().replace('-', '_')}": text for name, text in given.items()}
    told(read_settings, options.Values({}, []), no_config | environ)


TOML_VALUES = st.sampled_from(
    ["1", "-1", "1.5", "true", '""', '"x"', "[]", "[1]", "[[1]]", '["a", "b"]', "{}", "1979-05-27", "nan", "'\t'", "x"]
)


@given(st.lists(st.tuples(st.sampled_from([*SETTINGS, "run-dir", "workerz", "[x]", "'a.b'"]), TOML_VALUES), max_size=4))
def test_any_file_is_taken_or_refused(tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, str]]) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_text("\n".join(f"{name} = {value}" for name, value in lines))
    told(read_settings, options.Values({"--config": [str(file)]}, []), {})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe", "is not TOML"),
        (b"range = ", "is not TOML"),
        (b"a = " + b"[" * 100_000, "is not TOML"),
        (b"#" * (1 << 20) + b"\nworkers = 1", "larger than 1 MiB"),
        (b"workerz = 2", "no setting 'workerz' for a file (did you mean workers?)"),
        (b'run-dir = "/x"', "give it as --run-dir"),
        (b"workers = true", "workers takes a text or a number, not True"),
        (b"share = [[1]]", "share takes texts"),
        (b'log-level = "chatty"', "log-level takes one of debug, info, warning, error"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "appswitch.toml"
    file.write_bytes(content)
    with pytest.raises(SwitchError) as error:
        config.collect(options.Values({"--config": [str(file)]}, []), {}, 1000)
    assert words in str(error.value)
    assert str(file) in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name, words in (("", "needs the name of a file"), ("none", "there is no file"), (".", "Is a directory")):
        with pytest.raises((SwitchError, UsageError), match=words):
            config.collect(options.Values({"--config": [name and str(tmp_path / name)]}, []), {}, 1000)


ADDRESSES = {
    "10.1.2.3": True,
    "10.1.2.255": True,
    "::ffff:10.1.2.3": True,
    "2001:db8::1": True,
    "": False,
    "10.1.2": False,
    "010.1.2.3": False,
    "10.1.2.3/24": False,
    "10.1.2.3:80": False,
    " 10.1.2.3": False,
    "10.1.2.3\n": False,
    "0x0a010203": False,
    "[2001:db8::1]": False,
    "2001:db8::1/64": False,
    "fe80::1%eth0": False,
    "fe80::1": False,
    "::1": False,
    "127.0.0.1": False,
    "::ffff:127.0.0.1": False,
    "0.0.0.0": False,
    "::": False,
    "::ffff:0.0.0.0": False,
    "224.0.0.1": False,
    "ff02::1": False,
    "255.255.255.255": False,
    "fd61:7070:7377:6974:6368::a01:203": False,  # what 10.1.2.3 shows to IPv6 peers
}
NAMES = {
    "web": "web",
    "Web_1": "web_1",
    "web.": "web",
    "a.b": "a.b",
    "web.appswitch": "web",
    "xn--bcher-kva": "xn--bcher-kva",
    "a" * 63: "a" * 63,
    "": None,
    ".": None,
    "a..b": None,
    "-x": None,
    "x-": None,
    "a" * 64: None,
    ".".join(["a"] * 101): None,
    "bücher": None,
    "a b": None,
    "a\n": None,
    "localhost": None,
    "x.localhost": None,
    "appswitch": None,
    "*.appswitch": None,
    "10": None,
    "10.1.2.3": None,
}
TAGS = {
    "group=1": True,
    "a.b_c-d=ü": True,
    "group": False,
    "": False,
    "=": False,
    "=1": False,
    "group=": False,
    "a=b=c": False,
    "a=b,c": False,
    "a b=c": False,
    "a=b\n": False,
    "a=\x1b[2J": False,
    "a=\x85": False,
    "a=\u202e": False,  # writes from right to left from here on
    "a=\udcff": False,
    "ä=b": False,
    "k" * 64 + "=v": False,
    "k=" + "v" * 256: False,
}


@pytest.mark.parametrize("text", ADDRESSES)
def test_addresses(text: str) -> None:
    assert (told(check_address, text) is not None) == ADDRESSES[text]


@pytest.mark.parametrize("text", NAMES)
def test_names(text: str) -> None:
    assert told(check_name, text) == NAMES[text]


@pytest.mark.parametrize("text", TAGS)
def test_tags(text: str) -> None:
    assert (told(check_tags, [text]) is not None) == TAGS[text]


def test_the_same_tag_twice_is_one() -> None:
    assert check_tags(["a=1", "a=1", "a=2"]) == (("a", "1"), ("a", "2"))


@given(st.text(max_size=10) | st.integers().map(str) | st.just("1" * 5000) | st.just("٣"))
def test_numbers_are_ascii_digits_and_bounded(text: str) -> None:
    found = number.whole(text, 1, 65535)
    assert (found is not None) == bool(re.fullmatch("0*[1-9][0-9]{0,4}", text, re.ASCII) and int(text) <= 65535)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["runn"], "there is no command 'runn' (did you mean run?)"),
        (["Staus"], "(did you mean status?)"),
        (["start"], "(did you mean up?)"),
        (["help", "strat"], "there is no command 'strat'"),
        (["--run-dir", "x", "ps"], "options come after the command, as in `appswitch ps --run-dir …`"),
        (["\x1b[2J\n"], "there is no command '\\x1b[2J\\n'"),
        ([""], "there is no command ''"),
        (["run", "-p", "80:80", "true"], "there is no option -p; see"),
        (["ps", "--conections"], "there is no option --conections (did you mean --connections?)"),
        (["ps", "-\x07"], "there is no option -\\x07"),
        (["run", "--tag", "gruop=1", "true"], "write --tag group=1"),
        (["run", "--tag", "group=1,2", "true"], "give --tag several times"),
        (["status", "-o"], "-o needs a value"),
        (["run", "--name", "--", "true"], "--name needs a value"),
    ],
)
def test_what_may_have_been_meant_is_said(
    argv: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["appswitch", *argv])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert cli_main.main() in (2, 125)
    said = capfd.readouterr()
    assert words in said.err
    assert said.err.startswith("appswitch: ")
    assert said.err.count("\n") == 1
    assert said.out == ""
