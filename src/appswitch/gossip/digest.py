"""A tree of digests over versioned items: two that hold nearly the same find what differs by few octets (Merkle, 1987).

An item's place is a hash of its key, in hexadecimal; a node of the tree is all the items whose places begin alike. The
asker sends its digest of the root; where digests differ the other answers with those of the node's sixteen children,
or with the items themselves when they are few; and so on, a level at a time. Digests are salted anew for each
comparison: two that are equal by chance differ the next time, and nobody can make them equal beforehand.
"""

from __future__ import annotations

import functools
import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .wire import malformed

#: Octets of a digest, and of a salt.
DIGEST = SALT = 8
#: Digits of a place: the tree is no deeper, however many items there are.
DEPTH = 8
#: A node of so many items is told, not divided.
LEAF = 16
#: Nodes asked about at a time. Where more differ, whole states are cheaper.
NODES = 256
_DIGITS = "0123456789abcdef"


@dataclass(frozen=True, slots=True)
class Item:
    """`realm`: whose name it is; both may have one of the same name. `version` is at most 255 octets."""

    realm: int
    name: str
    version: bytes

    @property
    def place(self) -> str:
        return _place(self.realm, self.name)

    def packed(self) -> bytes:
        """All of it, so that no two items are packed alike."""
        name = self.name.encode()
        return bytes([self.realm, len(name)]) + name + bytes([len(self.version)]) + self.version


@functools.lru_cache(1 << 16)
def _place(realm: int, name: str) -> str:
    return hashlib.blake2b(bytes([realm]) + name.encode(), digest_size=DEPTH // 2).hexdigest()


Node = None | tuple[bytes, ...] | tuple[Item, ...]
"""What is answered about a node: it is equal here; its children's digests; or its items."""


class Tree:
    """Some items, each key once."""

    def __init__(self, salt: bytes, items: Iterable[Item]) -> None:
        self._salt = salt
        found = sorted((item.place, item.packed(), item) for item in items)
        self._places = [place for place, _, _ in found]
        self._packed = [packed for _, packed, _ in found]
        self._items = [item for _, _, item in found]

    def _under(self, prefix: str) -> slice:
        return slice(bisect_left(self._places, prefix), bisect_left(self._places, prefix + "g"))

    def items(self, prefix: str) -> tuple[Item, ...]:
        return tuple(self._items[self._under(prefix)])

    def digest(self, prefix: str) -> bytes:
        found = b"".join(self._packed[self._under(prefix)])
        return hashlib.blake2b(found, digest_size=DIGEST, key=self._salt).digest()

    def answer(self, prefix: str, digest: bytes) -> Node:
        """To one who has this digest of this node."""
        if digest == self.digest(prefix):
            return None
        under = self._under(prefix)
        if len(prefix) == DEPTH or under.stop - under.start <= LEAF:
            return tuple(self._items[under])
        return tuple(self.digest(prefix + digit) for digit in _DIGITS)


class Comparison:
    """The asker's side: what to ask next, and what was found to differ."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._asked = [""]
        #: (realm, name) → our version and theirs; None: it is missing there.
        self.differing: dict[tuple[int, str], tuple[bytes | None, bytes | None]] = {}

    @property
    def vast(self) -> bool:
        """More differs than is worth asking about."""
        return len(self._asked) > NODES

    def question(self) -> list[tuple[str, bytes]]:
        """Nodes and our digests of them; none: everything has been compared."""
        return [(prefix, self._tree.digest(prefix)) for prefix in self._asked]

    def answered(self, nodes: Sequence[Node]) -> None:
        """The answer, node by node. Refused: it is none."""
        if len(nodes) != len(self._asked):
            raise malformed("an answer about other nodes")
        further: list[str] = []
        for prefix, node in zip(self._asked, nodes, strict=True):
            if node and isinstance(node[0], bytes):
                if len(prefix) == DEPTH:
                    raise malformed("a tree that does not end")
                children = zip(_DIGITS, node, strict=True)
                further += [prefix + digit for digit, digest in children if digest != self._tree.digest(prefix + digit)]
            elif node is not None:
                self._compare(prefix, [item for item in node if isinstance(item, Item)])
        self._asked = further

    def _compare(self, prefix: str, items: Iterable[Item]) -> None:
        ours = {(item.realm, item.name): item.version for item in self._tree.items(prefix)}
        theirs: dict[tuple[int, str], bytes] = {}
        for item in items:
            if not item.place.startswith(prefix) or (item.realm, item.name) in theirs:
                raise malformed("an item that does not belong there")
            theirs[item.realm, item.name] = item.version
        for key in dict.fromkeys([*ours, *theirs]):
            if (pair := (ours.get(key), theirs.get(key)))[0] != pair[1]:
                self.differing[key] = pair
