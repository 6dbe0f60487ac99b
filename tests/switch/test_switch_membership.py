"""What is remembered of a cluster."""

import json
from dataclasses import replace

from appswitch.cluster.ring import Ring
from appswitch.cluster.serf import SerfSettings
from appswitch.switch.membership import Membership

SERF = SerfSettings(bytes(16), (bytes(32), bytes(16)), 7947, (("10.0.0.9", 7946),))
NEW = Membership("a", "c1", Ring.founded(bytes(32)).add(bytes(16)), port_range=(1, 2), seeds=(("10.0.0.1", 7942),))
NEW = replace(NEW, serf=SERF)


def test_there_and_back() -> None:
    assert Membership.of(json.loads(json.dumps(NEW.document()))) == NEW


def test_what_was_remembered_when_a_cluster_had_one_key() -> None:
    document = NEW.document() | {"secret": bytes(32).hex()}
    del document["ring"]
    assert Membership.of(document).ring == Ring.founded(bytes(32))


def test_what_was_remembered_before_there_was_serf() -> None:
    document = NEW.document()
    del document["serf"]
    assert Membership.of(document) == replace(NEW, serf=None)
