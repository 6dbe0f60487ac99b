"""Each host's rows on all the others: what to believe, what to pass on, what is missing. No I/O, no clock.

A host is the only author of its rows. It numbers its changes: `epoch` grows at each start of its router, `seq` with
each change within one, from an epoch without rows on. A change is applied when it is the next; one that comes too early
waits, and what is missing is fetched (repair.py); one that was seen is ignored. A change that is news is passed on.
Since only the author makes states and each has a number of its own, two states of a host are merged by taking the
later: in any order, and as often as one likes.

Rows are bytes under keys of bytes here; what they mean is the shell's affair. How hosts say it is in wire.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from . import wire
from .wire import CHANGE, HEAD, Part, pack, pack_version

Malformed = wire.Malformed
Rows: TypeAlias = wire.Rows

#: Bytes of a change that still travel in a datagram of the gossip's.
DATAGRAM = 1024
#: Datagrams for one set of changes; what is larger is fetched.
DATAGRAMS = 16
#: Hosts known; changes of one host, and of all, that may wait for those before them: beyond that they are fetched.
HOSTS, WAITING, WAITING_ALL = 16384, 1024, 8192
#: Rows that other hosts may have in all, and bytes of their keys and values. What goes beyond is refused.
ROWS, BYTES = 1 << 18, 256 << 20
#: Bytes of rows in one part; a host that has more is told alone.
PART = 8 << 20
_RANDOM_BITS = 32
_CHANCE = (1 << _RANDOM_BITS) - 1

Changes = Mapping[bytes, bytes | None]
"""New values by key; None: the row goes."""


def first_epoch(before: int, chance: int) -> int:
    """The epoch of a start, larger than the one before; `chance` keeps two starts apart that know of none before."""
    return ((before >> _RANDOM_BITS) + 1) << _RANDOM_BITS | chance & _CHANCE


@dataclass(slots=True)
class Effects:
    """What follows from an event: rows of live hosts to write by host, and messages for everybody."""

    rows: dict[str, dict[bytes, bytes | None]] = field(default_factory=dict)
    broadcasts: list[bytes] = field(default_factory=list)

    def _write(self, host: str, changes: Changes) -> None:
        if changes:
            self.rows.setdefault(host, {}).update(changes)


@dataclass(slots=True)
class _State:
    """What is known of a host. `size`: bytes of its rows.

    `waiting`: changes of this epoch that came too early, by their number.
    `heard`: the latest (epoch, seq) that anybody told of. `doubted`: the host said something that belongs to an
    earlier epoch; it may have started again without knowing of its former life.
    """

    epoch: int = 0
    seq: int = 0
    rows: Rows = field(default_factory=dict)
    size: int = 0
    alive: bool = False
    waiting: dict[int, Part] = field(default_factory=dict)
    heard: tuple[int, int] = (0, 0)
    doubted: bool = False

    @property
    def version(self) -> tuple[int, int]:
        return self.epoch, self.seq


class Replica:
    """All hosts' rows as host `me` knows them."""

    def __init__(self, me: str, epoch: int) -> None:
        self._me = me
        self._states: dict[str, _State] = {me: _State(epoch, alive=True, heard=(epoch, 0))}
        self._behind: dict[str, None] = {}  # asked for after each message: not to be sought among all hosts
        self._waiting = 0
        self._rows = self._bytes = 0  # of all hosts

    @property
    def epoch(self) -> int:
        """Of this host now; to be kept for the next start."""
        return self._states[self._me].epoch

    def rows(self, host: str) -> Rows:
        """A live host's rows; empty for one that is not."""
        state = self._states.get(host)
        return dict(state.rows) if state is not None and state.alive else {}

    def known(self, host: str) -> bool:
        """Is this host there, and has it told its rows?"""
        state = self._states.get(host)
        return state is not None and state.alive and state.epoch != 0

    def version(self, host: str) -> tuple[int, int]:
        """(epoch, seq) of what is known of a host; (0, 0): nothing."""
        state = self._states.get(host)
        return (0, 0) if state is None else state.version

    def packed(self, host: str) -> bytes:
        """The same as others compare it."""
        return pack_version(*self.version(host))

    def behind(self) -> list[str]:
        """Live hosts whose rows are to be fetched, for something is missing here, or with the host itself."""
        return list(self._behind)

    # the author --------------------------------------------------------------------------------------

    def change(self, changes: Changes) -> Effects:
        """This host's rows change; what is as it was is left out."""
        state, effects = self._states[self._me], Effects()
        news = [(key, value) for key, value in changes.items() if state.rows.get(key) != value]
        parts = list(_parted(news))
        if len(parts) > DATAGRAMS:
            parts = [news]
        for part in parts:
            self._apply(state, part)
            state.seq += 1
            effects.broadcasts.append(self._packed(part) if _size(part) <= DATAGRAM else self.head())
        state.heard = state.version
        return effects

    def _packed(self, part: Iterable[tuple[bytes, bytes | None]]) -> bytes:
        state = self._states[self._me]
        return pack([CHANGE, self._me, state.epoch, state.seq, [list(item) for item in part]])

    def head(self) -> bytes:
        """How far this host has got, for everybody who may have missed something."""
        state = self._states[self._me]
        return pack([HEAD, self._me, state.epoch, state.seq])

    # what others say -----------------------------------------------------------------------------------

    def message(self, payload: bytes) -> Effects:
        """A broadcast has come. Malformed when it is none."""
        kind, host, epoch, seq, part = wire.read_message(payload)
        more = {key: value for key, value in part if value is not None}
        self._check_room(len(more), _bytes(more))
        effects = Effects()
        state = self._state(host)
        if host == self._me:
            self._contest(epoch, seq, effects)
            return effects
        if (epoch, seq) <= state.version:
            state.doubted = state.doubted or epoch < state.epoch
            self._compare(host, state)
            return effects
        news = (epoch, seq) > state.heard
        state.heard = max(state.heard, (epoch, seq))
        if kind == CHANGE and not state.epoch and seq == 1:
            state.epoch = epoch  # a host that is new: this is all it had
        if kind == CHANGE and epoch == state.epoch and seq not in state.waiting:
            if len(state.waiting) < WAITING and self._waiting < WAITING_ALL:
                state.waiting[seq] = part
                self._waiting += 1
                news = True
            self._catch_up(host, state, effects)
        self._compare(host, state)
        if news:
            effects.broadcasts.append(payload)
        return effects

    def states(self) -> bytes:
        """All that is known, for push/pull: the rows of live hosts, and how far all are said to have got."""
        found: list[list[Any]] = []
        for host, state in self._states.items():
            if state.epoch and state.alive:
                found.append(_entry(host, state))
            # Also to the host itself: it may not know that it has lived before.
            if max(state.heard, state.version) > (state.version if state.alive else (0, 0)):
                found.append([host, *max(state.heard, state.version), None])
        return pack(found)

    def versions(self) -> dict[str, bytes]:
        """How far live hosts are said to have got, to be compared with what others have heard."""
        return {
            host: pack_version(*max(state.heard, state.version))
            for host, state in self._states.items()
            if state.alive and max(state.heard, state.version) > (0, 0)
        }

    def told(self, versions: Mapping[str, bytes]) -> Effects:
        """Somebody has these. Malformed when they are none."""
        effects = Effects()
        for host, version in [(host, wire.read_version(host, packed)) for host, packed in versions.items()]:
            if host == self._me:
                self._contest(*version, effects)
            elif version > self.version(host):
                state = self._state(host)
                state.heard = max(state.heard, version)
                self._compare(host, state)
        return effects

    def part(self, wanted: Mapping[str, bytes]) -> bytes:
        """The rows of these hosts that are later here than these versions, for `merge`; else how far they have got."""
        found: list[list[Any]] = []
        room = PART
        for host, packed in wanted.items():
            state = self._states.get(host)
            if state is None or not (state.epoch and state.alive):
                continue
            if pack_version(*state.version) <= packed or (state.size > room and room < PART):
                found.append([host, *state.version, None])
            else:
                found.append(_entry(host, state))
                room -= state.size
        return pack(found)

    def merge(self, states: bytes) -> Effects:
        """Somebody's states have come. Malformed when they are none; nothing has changed then."""
        effects = Effects()
        told = wire.read_states(states, HOSTS, ROWS)
        replaced = [
            (self._states.get(host, _State()), rows)
            for host, epoch, seq, rows in told
            if rows is not None and (epoch, seq) > self.version(host)
        ]
        self._check_room(
            sum(len(rows) - len(state.rows) for state, rows in replaced),
            sum(_bytes(rows) - state.size for state, rows in replaced),
        )
        for host, epoch, seq, rows in told:
            state = self._state(host)
            if host == self._me:
                self._contest(epoch, seq, effects)
                continue
            if epoch >= state.epoch:
                state.doubted = False
            if (epoch, seq) > state.version:
                state.heard = max(state.heard, (epoch, seq))
                if rows is not None:
                    self._replace(host, state, (epoch, seq), rows, effects)
            self._compare(host, state)
        return effects

    def alive(self, host: str) -> Effects:
        """A member is there (again): what is known of its rows holds."""
        state, effects = self._state(host), Effects()
        if not state.alive:
            state.alive = True
            self._compare(host, state)
            effects._write(host, state.rows)
        return effects

    def gone(self, host: str) -> Effects:
        """A member has left or was declared dead: its rows go. What was known is remembered, should it come back."""
        state, effects = self._state(host), Effects()
        if state.alive and host != self._me:
            state.alive = False
            self._compare(host, state)
            effects._write(host, dict.fromkeys(state.rows))
        return effects

    def forget(self, host: str) -> None:
        """Nobody speaks of this member any more."""
        if host != self._me and (state := self._states.pop(host, None)) is not None:
            self._waiting -= len(state.waiting)
            self._rows -= len(state.rows)
            self._bytes -= state.size
            self._behind.pop(host, None)

    # ---------------------------------------------------------------------------------------------------

    def _state(self, host: str) -> _State:
        state = self._states.get(host)
        if state is None:
            if len(self._states) >= HOSTS:
                raise Malformed(f"more than {HOSTS} hosts")
            state = self._states[host] = _State()
        return state

    def _check_room(self, rows: int, size: int) -> None:
        """Malformed when there are too many with so many more."""
        if self._rows + rows > ROWS or self._bytes + size > BYTES:
            raise Malformed(f"more than {ROWS} rows, or {BYTES} bytes of them")

    def _apply(self, state: _State, part: Iterable[tuple[bytes, bytes | None]]) -> None:
        rows, size = len(state.rows), state.size
        for key, value in part:
            old = state.rows.pop(key, None)
            if old is not None:
                state.size -= len(key) + len(old)
            if value is not None:
                state.rows[key] = value
                state.size += len(key) + len(value)
        self._rows += len(state.rows) - rows
        self._bytes += state.size - size

    def _contest(self, epoch: int, seq: int, effects: Effects) -> None:
        """Somebody has rows of this host that this router never made: an earlier start's. Outdo them."""
        state = self._states[self._me]
        if (epoch, seq) > state.version:
            state.epoch, state.seq = first_epoch(epoch, state.epoch), 1
            state.heard = state.version
            effects.broadcasts.append(self.head())

    def _compare(self, host: str, state: _State) -> None:
        if state.alive and (state.doubted or state.heard > state.version):
            self._behind[host] = None
        else:
            self._behind.pop(host, None)

    def _replace(self, host: str, state: _State, version: tuple[int, int], rows: Rows, effects: Effects) -> None:
        """All of a host's rows have come, later ones than those known."""
        if state.alive:
            gone = dict.fromkeys(key for key in state.rows if key not in rows)
            effects._write(host, gone | {k: v for k, v in rows.items() if state.rows.get(k) != v})
        if version[0] != state.epoch:
            self._waiting -= len(state.waiting)
            state.waiting.clear()
        self._rows += len(rows) - len(state.rows)
        self._bytes += (size := _bytes(rows)) - state.size
        state.epoch, state.seq, state.rows, state.size = *version, rows, size
        self._catch_up(host, state, effects)

    def _catch_up(self, host: str, state: _State, effects: Effects) -> None:
        """Apply the changes that are next."""
        while (part := state.waiting.pop(state.seq + 1, None)) is not None:
            self._waiting -= 1
            self._apply(state, part)
            state.seq += 1
            if state.alive:
                effects._write(host, dict(part))
        for seq in [seq for seq in state.waiting if seq <= state.seq]:
            self._waiting -= 1
            del state.waiting[seq]


def _entry(host: str, state: _State) -> list[Any]:
    return [host, state.epoch, state.seq, [list(item) for item in state.rows.items()]]


def _bytes(rows: Rows) -> int:
    return sum(map(len, rows)) + sum(map(len, rows.values()))


def _parted(items: Part) -> Iterable[Part]:
    """The changes in parts that fit into a datagram each, as far as they can."""
    part: Part = []
    size = 0
    for item in items:
        more = _size([item])
        if part and size + more > DATAGRAM:
            yield part
            part, size = [], 0
        part.append(item)
        size += more
    if part:
        yield part


def _size(part: Iterable[tuple[bytes, bytes | None]]) -> int:
    return sum(len(key) + len(value or b"") + 8 for key, value in part)
