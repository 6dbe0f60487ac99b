"""What is derived from a cluster's secret: one key for each purpose (HKDF with SHA-256, RFC 5869)."""

from __future__ import annotations

import hashlib
import hmac
import secrets

#: Bytes of a new secret, and of each derived key.
SIZE = 32
#: Bytes that a cluster's secret may have: those of AES keys, though what is derived from it has 32 always.
SIZES = (16, 24, 32)
#: What a key is for (HKDF's info).
GOSSIP, HEADER = b"appswitch gossip 1", b"appswitch header 1"


def new_secret() -> bytes:
    """A secret for a new cluster, or for one whose key is changed."""
    return secrets.token_bytes(SIZE)


def derive(secret: bytes, purpose: bytes) -> bytes:
    """The 32-byte key for one purpose."""
    return expand(hmac.digest(bytes(hashlib.sha256().digest_size), secret, "sha256"), purpose, SIZE)


def expand(key: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand (RFC 5869, 2.3); `key` comes from HKDF-Extract."""
    block, output = b"", b""
    while len(output) < length:
        block = hmac.digest(key, block + info + bytes([len(output) // hashlib.sha256().digest_size + 1]), "sha256")
        output += block
    return output[:length]
