"""How lists are shown."""

import pytest

from appswitch.cli.output import age, printable, table


def test_columns_are_aligned_and_nothing_trails() -> None:
    text = table(("NAME", "PORT"), [("web", 80), ("database", 5432), (None, None)])
    assert text.splitlines() == ["NAME      PORT", "web       80", "database  5432", "-         -"]


def test_lines_are_cut_at_the_width_and_show_it() -> None:
    assert table(("A",), [("x" * 50,), ("x" * 10,)], 10).splitlines()[1:] == ["x" * 9 + "…", "x" * 10]


def test_a_reason_goes_on_below_itself() -> None:
    text = table(("PORT", "RULE"), [(80, "client group 2 and service group 1 share no value")], 30)
    assert text.splitlines() == [
        "PORT  RULE",
        "80    client group 2 and",
        "      service group 1 share no",
        "      value",
    ]


def test_a_reason_without_room_beside_the_rest_has_lines_of_its_own() -> None:
    text = table(("CLIENT", "PORT", "RULE"), [("169.254.211.138", 80, "they share no value")], 30)
    assert text.splitlines() == [
        "CLIENT           PORT",
        "    RULE",
        "169.254.211.138  80",
        "    they share no value",
    ]


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
