"""Reading command lines."""

import pytest

from appswitch.cli import main as cli_main
from appswitch.cli.options import HELP, Command, Option, UsageError, help_text, read
from appswitch.cli.run import COMMAND as RUN

LIST = Command("list", "", "Lists.", (Option("--output", "FORMAT", "how", ("table", "json"), short="-o"),), lambda _: 0)


def test_options_end_at_the_first_word() -> None:
    values = read(RUN, ["--name", "web", "server", "--name", "x", "--", "y"])
    assert values is not None
    assert values.one("--name") == "web"
    assert values.words == ["server", "--name", "x", "--", "y"]


def test_options_end_at_two_dashes() -> None:
    values = read(RUN, ["--tag=a=1", "--tag", "b=2", "--", "--name", "--"])
    assert values is not None
    assert values.all("--tag") == ["a=1", "b=2"]
    assert values.words == ["--name", "--"]


def test_an_empty_value_is_a_value() -> None:
    values = read(RUN, ["--name=", "x"])
    assert values is not None
    assert values.one("--name") == ""


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--nmae", "web"], "no option --nmae"),
        (["-x"], "no option -x"),
        (["--name"], "--name needs a value"),
        (["--name", "a", "--name", "b"], "given twice"),
        (["--transport", "pigeon"], "auto, tcp or unix"),
    ],
)
def test_a_wrong_command_line_is_told_in_words(argv: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read(RUN, argv)


def test_words_where_there_are_none() -> None:
    with pytest.raises(UsageError, match="no place for 'x'"):
        read(LIST, ["x"])


@pytest.mark.parametrize("argv", [["-o", "json"], ["-ojson"]])
def test_short_options(argv: list[str]) -> None:
    values = read(LIST, argv)
    assert values is not None
    assert values.one("--output") == "json"


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_is_asked_for(word: str) -> None:
    assert read(LIST, [word]) is None
    assert read(RUN, ["--name", "x", word]) is None
    assert read(RUN, ["program", word]) is not None, "that is the program's own"


@pytest.mark.parametrize("name", cli_main.COMMANDS)
def test_every_command_explains_all_its_options(name: str) -> None:
    command = __import__(f"appswitch.cli.{name}", fromlist=["COMMAND"]).COMMAND
    text = help_text(command)
    assert text.startswith(f"Usage: appswitch {name}")
    assert all(option.name in text and option.help for option in (*command.options, HELP))
    assert name in cli_main.overview()


def test_help_of_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["appswitch", "help", "run"])
    assert cli_main.main() == 0
    assert capsys.readouterr().out.startswith("Usage: appswitch run")
