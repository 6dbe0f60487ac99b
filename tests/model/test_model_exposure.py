"""`--expose`: what is asked for, what clashes, and which listeners a port is for."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appswitch.model.address import ANY, ANY4, LOOPBACK4, LOOPBACK6, pack
from appswitch.model.exposure import Exposure, Place, parse
from appswitch.model.identity import Refusal
from appswitch.model.service import Service

ROW = Service(
    vip=pack("100.64.1.2"),
    port=80,
    instance=1,
    program=1,
    name="web",
    tags=(("group", "1"),),
    bound=ANY4,
    dual=False,
    listener="l/1",
    real=("127.0.0.1", 40000),
    balance="round-robin",
    transport="auto",
    since=1.0,
    uid=0,
    cookie=1,
)


@pytest.mark.parametrize(
    ("text", "exposure"),
    [
        ("8080:80", Exposure("", 8080, 80)),
        ("80", Exposure("", 80, 80)),
        ("127.0.0.1:8080:80", Exposure("127.0.0.1", 8080, 80)),
        ("0.0.0.0:8080:80", Exposure("0.0.0.0", 8080, 80)),
        ("[::]:8080:80", Exposure("::", 8080, 80)),
        ("[2001:DB8:0::1]:8080:80", Exposure("2001:db8::1", 8080, 80)),
        ("[::ffff:10.0.0.1]:8080:80", Exposure("10.0.0.1", 8080, 80)),
    ],
)
def test_what_is_asked_for(text: str, exposure: Exposure) -> None:
    assert parse(text) == exposure


@pytest.mark.parametrize(
    "text",
    ["", ":", "8080:", ":80", "0:80", "8080:65536", "-1:80", "8080:80/udp", "80:80:80:80", ":8080:80", "٨٠:80"]
    + ["10.0.0.1:80", "10.0.0.1.5:8080:80", "localhost:8080:80", "::1:8080:80", "[::1]:80", "[::1]8080:80"]
    + ["[::1:8080:80", "[10.0.0.1]:8080:80", "[]:8080:80", "[fe80::1%eth0]:8080:80"],
)
def test_what_cannot_be_read_is_refused_in_words(text: str) -> None:
    with pytest.raises(Refusal, match="--expose"):
        parse(text)


@given(st.text(max_size=40) | st.text("[]:.0123456789af", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse(text)
    except Refusal:
        return
    assert 1 <= min(found.host_port, found.port) <= max(found.host_port, found.port) <= 65535
    assert found.places()
    if found.address:
        [place] = found.places()
        assert parse(f"{place}:{found.port}") == found


def test_no_address_means_all_of_both_families() -> None:
    assert [str(place) for place in Exposure("", 8080, 80).places()] == ["0.0.0.0:8080", "[::]:8080"]


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        ("0.0.0.0", "0.0.0.0", True),
        ("0.0.0.0", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "10.0.0.1", True),
        ("::", "::1", True),
        ("::1", "::2", False),
        ("0.0.0.0", "::", False),
        ("::", "10.0.0.1", False),
    ],
)
def test_places_that_cannot_both_be_had(one: str, other: str, clash: bool) -> None:
    first, second = Place(one, 8080, 80), Place(other, 8080, 81)
    assert first.overlaps(second) == second.overlaps(first) == clash
    assert not first.overlaps(second._replace(host_port=8081))


@pytest.mark.parametrize(
    ("row", "families"),
    [
        (ROW, "4"),
        (replace(ROW, bound=ANY), "6"),
        (replace(ROW, bound=ANY, dual=True), "46"),
        (replace(ROW, bound=ROW.vip), "4"),
        (replace(ROW, bound=pack("2001:db8::5"), dual=True), "6"),
        (replace(ROW, bound=LOOPBACK4), ""),
        (replace(ROW, bound=LOOPBACK6, dual=True), ""),
        (replace(ROW, alone=True), ""),
        (replace(ROW, state="down"), ""),
        (replace(ROW, port=81), ""),
    ],
)
def test_which_listener_a_place_is_for(row: Service, families: str) -> None:
    four, six = Exposure("", 8080, 80).places()
    assert four.is_for(row) == ("4" in families)
    assert six.is_for(row) == ("6" in families)
