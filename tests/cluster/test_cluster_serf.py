"""The settings of a host that is in Serf, too."""

import json
from dataclasses import replace

import pytest

from appswitch.cluster.serf import PORT, SerfRefused, SerfSettings, resolve

KEY, TEXT = bytes(16), "AAAAAAAAAAAAAAAAAAAAAA=="


def test_closed_unless_it_is_asked_for() -> None:
    assert resolve(None, None, None, None) is None
    assert resolve("off", "7946", "10.0.0.1", SerfSettings(KEY, (KEY,))) is None


def test_encrypted_and_plain() -> None:
    assert resolve(TEXT, None, None, None) == SerfSettings(KEY, (KEY,), PORT)
    assert resolve("plain", "99", "10.0.0.1, [fd00::1]:8,fd00::2,10.0.0.1:9", None) == SerfSettings(
        b"", (), 99, (("10.0.0.1", PORT), ("fd00::1", 8), ("fd00::2", PORT), ("10.0.0.1", 9))
    )


def test_what_is_not_said_stays_and_keys_that_serf_changed_do() -> None:
    changed = SerfSettings(KEY, (bytes(32), KEY), 99, (("10.0.0.1", 7),))
    assert resolve(None, None, None, changed) == changed
    assert resolve(TEXT, None, None, changed) == changed
    assert resolve("A" * 43 + "=", None, None, changed) == replace(changed, given=bytes(32), keys=(bytes(32),))
    assert resolve("plain", None, None, changed) == replace(changed, given=b"", keys=())


@pytest.mark.parametrize(
    ("which", "port", "seeds"),
    [
        ("secret-word", None, None),
        ("", None, None),
        (None, "7946", None),
        (None, None, "10.0.0.1"),
        ("plain", "0", None),
        ("plain", "x", None),
        *(
            ("plain", None, seed)
            for seed in ("", "host", "10.0.0.1:", "10.0.0.1:x", "[fd00::1", "[fd00::1]x", "0.0.0.0", "fe80::1%e")
        ),
    ],
)
def test_what_is_none_is_refused_in_a_sentence(which: str | None, port: str | None, seeds: str | None) -> None:
    with pytest.raises(SerfRefused, match="--serf") as refused:
        resolve(which, port, seeds, None)
    assert "secret-word" not in str(refused.value)


def test_there_and_back() -> None:
    settings = SerfSettings(KEY, (KEY, bytes(32)), 9, (("10.0.0.1", 7),))
    assert SerfSettings.of(json.loads(json.dumps(settings.document()))) == settings
    assert "00" not in repr(settings)
