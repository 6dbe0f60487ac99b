"""The sealed box around packets: AES-GCM under one of the cluster's keys, as memberlist's encryption version 1.

Layout: version octet 1, nonce (12), ciphertext, tag (16). Nonces are random, 96 bits, and all members seal with one
key: together they should seal less than 2^32 packets with it (NIST SP 800-38D, 8.3), for then no nonce comes twice but
with a probability below 2^-32. docs/cluster.md says how long that is, and how the key is changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .refused import Refused

VERSION = 1
NONCE = 12
TAG = 16
#: Octets that sealing adds.
OVERHEAD = 1 + NONCE + TAG
KEY_SIZES = (16, 24, 32)


def _nonce() -> bytes:
    return os.urandom(NONCE)


class KeyRing:
    """Keys of one cluster: the first seals, all open. ValueError for none or for one of a wrong length."""

    def __init__(self, keys: Sequence[bytes], nonce: Callable[[], bytes] = _nonce) -> None:
        self._nonce = nonce
        self.replace(keys)

    def replace(self, keys: Sequence[bytes]) -> None:
        """Have these keys from now on. ValueError as above, and nothing has changed then."""
        if not keys or any(len(key) not in KEY_SIZES for key in keys):
            raise ValueError("a gossip key has 16, 24 or 32 octets, and there is at least one")
        self._ciphers = [AESGCM(key) for key in keys]

    def seal(self, plain: bytes, context: bytes, cipher: AESGCM | None = None) -> bytes:
        """The box of `plain`, by the first key unless another is given; it opens only with the same `context`."""
        nonce = self._nonce()
        return b"\x01" + nonce + (cipher or self._ciphers[0]).encrypt(nonce, plain, context)

    def open(self, box: bytes, context: bytes) -> bytes:
        """What was sealed. Refused("unsealed") when it is no box, ("wrong_key") when no key of ours opens it."""
        return self.open_by(box, context)[0]

    def open_by(self, box: bytes, context: bytes) -> tuple[bytes, AESGCM]:
        """What was sealed, as `open`, and the key that opened it."""
        if len(box) < OVERHEAD or box[0] != VERSION:
            raise Refused("unsealed", "not a sealed box")
        nonce, sealed = box[1 : 1 + NONCE], box[1 + NONCE :]
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(nonce, sealed, context), cipher
            except InvalidTag:
                continue
        raise Refused("wrong_key", "sealed with another key")
