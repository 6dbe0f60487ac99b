"""A small part of what `make sim` measures, and its report."""

import statistics
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench import scale_plot
from bench.scale_report import DETECTION, JOINING, SHARES, Results, columns, markdown, serf, suspicion
from bench.scale_scenes import play

#: gossip's curve as Serf publishes it, in seconds: 50, 90, 99 and 99.99 % of so many hosts, without loss.
PUBLISHED = {10: (0.4, 0.8, 1.0, 1.6), 100: (0.8, 1.0, 1.4, 2.0), 1000: (1.0, 1.4, 1.6, 2.2)}


def test_serfs_figures_are_those_that_it_publishes() -> None:
    for size, times in PUBLISHED.items():
        assert [serf(size, 0.0, part) for part in SHARES] == pytest.approx(times)
    assert [serf(1000, loss, 0.9999) for loss in (0.1, 0.3, 0.5)] == pytest.approx([2.4, 3.2, 4.4])
    assert suspicion(3) == (4.0, 24.0)
    assert suspicion(1000) == pytest.approx((12.0, 72.0))


@pytest.mark.parametrize("loss", [0.0, 0.1, 0.3])
def test_a_row_is_known_sooner_than_serf_would_tell_it(loss: float) -> None:
    found = columns(play("rows", {"size": 100, "loss": loss, "count": 5, "seed": 1})["times"])
    for part, times in zip(SHARES, found, strict=True):
        assert statistics.fmean(times) <= serf(100, loss, part)


def test_a_death_is_suspected_after_one_and_a_half_periods() -> None:
    took = play("detection", {"size": 50, "loss": 0.0, "deaths": 1, "worlds": 80, "seed": 1})["took"]
    assert statistics.fmean(took) <= DETECTION


def octets(size: int, whole: bool) -> float:
    found = play("idle", {"size": size, "seconds": 30.0, "whole": whole, "seed": 1})
    return float(found["datagram_octets"] + found["stream_octets"])


def test_octets_are_as_many_in_any_cluster() -> None:
    assert octets(300, whole=False) <= 1.1 * octets(10, whole=False)
    assert octets(300, whole=True) > 2 * octets(10, whole=True), "the digests are what makes it flat"


def test_a_newcomer_costs_each_of_many_no_more_than_each_of_few() -> None:
    few, many = (play("joining", {"size": size, "seed": 1}) for size in (10, 300))
    for found in (few, many):
        assert None not in found["times"]
        assert found["others"] <= JOINING
    assert many["others"] <= few["others"] + 100


def test_changes_on_their_way_are_not_fetched() -> None:
    found = play("load", {"size": 60, "services": 600, "changes": 10.0, "seconds": 20.0, "seed": 1})
    assert found["stream_octets"] <= 40, "a whole state of 100 kB every 60 s would be over 3,000"


def test_the_report_says_what_was_met_and_what_not() -> None:
    wanted: list[tuple[str, dict[str, Any]]] = [
        ("rows", {"size": 10, "loss": 0.1, "count": 2}),
        ("detection", {"size": 10, "loss": 0.0, "deaths": 1, "worlds": 3}),
        ("everybody", {"size": 10, "loss": 0.1, "deaths": 1}),
        ("idle", {"size": 10, "seconds": 5.0}),
        ("idle", {"size": 10, "seconds": 5.0, "whole": True}),
        ("joining", {"size": 10}),
        ("lossy", {"size": 10, "loss": 0.1, "seconds": 5.0}),
        ("load", {"size": 10, "services": 100, "changes": 10.0, "seconds": 1.0}),
        ("slow", {"size": 10, "lag": 16.0, "lifeguard": True, "seconds": 5.0}),
        ("slow", {"size": 10, "lag": 16.0, "lifeguard": False, "seconds": 5.0}),
    ]
    results = Results([(cell, play(cell[0], cell[1] | {"seed": 1})) for cell in wanted], "2000-01-01")
    page = markdown(results)
    assert "missed" in page, "five seconds without a false verdict are no ten times fewer"
    for (name, _), figures in results.cells:
        if name == "rows":
            figures["times"] = [[None] * 4]
    assert "inf" in markdown(results)
    for (name, _), figures in results.cells:
        if name == "rows":
            figures["times"] = [[9.0] * 4]
    assert page.count("**missed**") < markdown(results).count("**missed**")
    ElementTree.fromstring(scale_plot.svg(results))
