"""The one string that a new host needs: where members are, the cluster's label, and its secret.

`as1-` and base32 (RFC 4648, in small letters, without padding) of: the label's length (and 64 more for a secret of 16
bytes, 128 for one of 24), the label, the secret (32 bytes otherwise), the number of addresses, each as 4 or 6 (the IP
version), the address and its port (big endian), and the first 4 bytes of the SHA-256 of all that, by which a slip of
the hand is told from another key.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
import secrets
import struct
from dataclasses import dataclass, field

from .keys import SIZES

PREFIX = "as1-"
_CHECK = 4
_PORT = struct.Struct("!H")
_LABEL = re.compile(r"[a-z0-9-]{1,32}")
#: Addresses in a token: more are of no use.
ADDRESSES = 8
#: What is added to the label's length for each size of the secret.
_SIZE_BITS = {32: 0, 16: 64, 24: 128}
_HELP = "copy the whole of what `appswitch token` prints on a host of the cluster"


class TokenError(ValueError):
    """A text that is no token; one sentence, which does not repeat the text."""


@dataclass(frozen=True, slots=True)
class Token:
    """`label` tells clusters apart, in clear text; `addresses`: where members listen for gossip."""

    label: str
    secret: bytes = field(repr=False)
    addresses: tuple[tuple[str, int], ...]


def new_label() -> str:
    """A label for a new cluster."""
    return secrets.token_hex(4)


def encode(token: Token) -> str:
    """The token's text. ValueError when its parts are not right."""
    if not _LABEL.fullmatch(token.label) or len(token.secret) not in SIZES or not 0 < len(token.addresses) <= ADDRESSES:
        raise ValueError("a token has a label, a secret and some addresses")
    length = len(token.label) + _SIZE_BITS[len(token.secret)]
    parts = [bytes([length]), token.label.encode(), token.secret, bytes([len(token.addresses)])]
    for text, port in token.addresses:
        address = ipaddress.ip_address(text)
        parts += [bytes([address.version]), address.packed, _PORT.pack(port)]
    data = b"".join(parts)
    return PREFIX + base64.b32encode(data + _check(data)).decode().rstrip("=").lower()


def decode(text: str) -> Token:
    """The token of a text; TokenError when it is none."""
    text = "".join(text.split()).lower()
    if not text:
        raise TokenError(f"the token is empty: {_HELP}")
    if not text.startswith(PREFIX):
        if re.match(r"as\d+-", text):
            raise TokenError("the token is of another version of AppSwitch: use the same on all hosts of a cluster")
        raise TokenError(f"a token begins with {PREFIX}, this text does not: {_HELP}")
    body = text.removeprefix(PREFIX)
    if not re.fullmatch(r"[a-z2-7]*", body):
        raise TokenError(f"the token has a character that no token has: {_HELP}")
    try:
        whole = base64.b32decode(body.upper() + "=" * (-len(body) % 8))
    except ValueError:
        whole = b""
    data, check = whole[:-_CHECK], whole[-_CHECK:]
    if len(whole) <= _CHECK or _check(data) != check:
        raise TokenError(f"the token is incomplete or mistyped: {_HELP}")
    try:
        token = _read(data)
        if encode(token) != text:
            raise ValueError
    except (ValueError, IndexError, struct.error):
        raise TokenError("the token holds what no token does: have a new one printed by `appswitch token`") from None
    return token


def _read(data: bytes) -> Token:
    size = {bits: size for size, bits in _SIZE_BITS.items()}.get(data[0] & 0xC0, 0)
    end = 1 + (data[0] & 0x3F)
    label, secret = data[1:end].decode("ascii"), data[end : end + size]
    count, place = data[end + size], end + size + 1
    addresses = []
    for _ in range(count):
        octets = {4: 4, 6: 16}.get(data[place], 0)
        address = ipaddress.ip_address(data[place + 1 : place + 1 + octets])
        (port,) = _PORT.unpack_from(data, place + 1 + octets)
        addresses.append((str(address), port))
        place += 1 + octets + _PORT.size
    if place != len(data):
        raise ValueError
    return Token(label, secret, tuple(addresses))


def _check(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:_CHECK]
