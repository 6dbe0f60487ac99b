"""How lists are shown."""

import pytest

from appswitch.cli.output import age, printable, table


def test_columns_are_aligned_and_nothing_trails() -> None:
    text = table(("NAME", "PORT"), [("web", 80), ("database", 5432), (None, None)])
    assert text.splitlines() == ["NAME      PORT", "web       80", "database  5432", "-         -"]


def test_lines_are_cut_at_the_width_and_show_it() -> None:
    assert table(("A",), [("x" * 50,), ("x" * 10,)], 10).splitlines()[1:] == ["x" * 9 + "…", "x" * 10]


@pytest.mark.parametrize(
    ("client", "rule", "lines"),
    [
        ("web", "group 2 and group 1 share no value", ["web     group 2 and group 1", "        share no value"]),
        ("169.254.211.138", "they share no value", ["169.254.211.138", "    they share no value"]),
        ("web", " ", ["web"]),
    ],
)
def test_a_reason_is_never_cut(client: str, rule: str, lines: list[str]) -> None:
    rows = [(client, rule), ("-", "so long a reason that the table must be wider")]
    assert "\n".join(["", *lines, "-"]) in table(("CLIENT", "RULE"), rows, 28)


def test_an_empty_list_is_its_header() -> None:
    assert table(("A", "B"), []) == "A  B"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        ("", "-"),
        ([], "-"),
        ([80, 443], "80,443"),
        (0, "0"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\nb\udcff", "a\\nb\\udcff"),
        ("né", "né"),
    ],
)
def test_a_cell_cannot_command_the_terminal(value: object, shown: str) -> None:
    assert printable(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.9, "0s"), (59, "59s"), (60, "1m"), (200, "3m20s"), (3600, "1h"), (7500, "2h5m"), (356400, "4d3h")],
)
def test_ages(seconds: float, shown: str) -> None:
    assert age(seconds) == shown
