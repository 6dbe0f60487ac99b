"""What is remembered of a cluster."""

import json

from appswitch.cluster.ring import Ring
from appswitch.switch.membership import Membership

NEW = Membership("a", "c1", Ring.founded(bytes(32)).add(bytes(16)), port_range=(1, 2), seeds=(("10.0.0.1", 7942),))


def test_there_and_back() -> None:
    assert Membership.of(json.loads(json.dumps(NEW.document()))) == NEW


def test_what_was_remembered_when_a_cluster_had_one_key() -> None:
    document = NEW.document() | {"secret": bytes(32).hex()}
    del document["ring"]
    assert Membership.of(document).ring == Ring.founded(bytes(32))
