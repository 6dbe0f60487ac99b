"""Keys from the cluster's secret."""

import hmac

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from appswitch.cluster import keys


@given(st.binary(min_size=1, max_size=80), st.binary(max_size=40))
def test_derivation_is_that_of_rfc_5869(secret, info):
    assert keys.derive(secret, info) == HKDF(SHA256(), 32, None, info).derive(secret)


@given(st.binary(max_size=40), st.integers(1, 200))
def test_expansion_of_any_length(info, length):
    whole = HKDF(SHA256(), length, None, info).derive(b"k")
    assert keys.expand(hmac.digest(bytes(32), b"k", "sha256"), info, length) == whole


def test_purposes_have_keys_of_their_own():
    secret = keys.new_secret()
    assert len({secret, keys.derive(secret, keys.GOSSIP), keys.derive(secret, keys.HEADER)}) == 3
    assert secret != keys.new_secret()
