"""News waiting to be sent, each a limited number of times, the freshest and largest first (SWIM, section 4.1)."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

_Key = tuple[int, int, int]  # times sent, -octets, -number


def transmit_limit(mult: int, members: int) -> int:
    """How many times one message is sent in a cluster of so many members."""
    return mult * math.ceil(math.log10(members + 1))


@dataclass(slots=True)
class _News:
    message: bytes
    about: str | None
    key: _Key


class Broadcasts:
    """The queue. News about something replace older news about the same thing."""

    def __init__(self, most: int, most_octets: int) -> None:
        self._most = most
        self._most_octets = most_octets
        self._news: dict[int, _News] = {}
        self._about: dict[str, int] = {}
        self._order: list[_Key] = []
        self._number = 0
        self._octets = 0

    def __len__(self) -> int:
        return len(self._news)

    @property
    def octets(self) -> int:
        """What all of it takes."""
        return self._octets

    def holds(self, about: str) -> bool:
        """Whether news about this still wait to be sent (again)."""
        return about in self._about

    def add(self, message: bytes, about: str | None = None) -> int:
        """Queue it; the number of messages that had to go because there are too many."""
        if about is not None:
            self.forget(about)
        self._number += 1
        news = _News(message, about, (0, -len(message), -self._number))
        self._news[self._number] = news
        self._octets += len(message)
        bisect.insort(self._order, news.key)
        if about is not None:
            self._about[about] = self._number
        dropped = 0
        while len(self._news) > self._most or self._octets > self._most_octets:
            self._remove(-self._order[-1][2])
            dropped += 1
        return dropped

    def forget(self, about: str) -> None:
        """Drop what is queued about this."""
        number = self._about.get(about)
        if number is not None:
            self._remove(number)

    def clear(self) -> None:
        self._news.clear()
        self._about.clear()
        self._order.clear()
        self._octets = 0

    @property
    def has_fresh(self) -> bool:
        """Whether something was never sent."""
        return bool(self._order) and self._order[0][0] == 0

    def take(self, room: int, overhead: int, limit: int, most: int, *, fresh: bool = False) -> list[bytes]:
        """At most `most` messages for one datagram: their octets and `overhead` for each fit into `room`.

        Each is counted as sent once more and leaves the queue when that makes `limit`. `fresh`: none that was sent
        before.
        """
        taken: list[_News] = []
        sent = 0
        while len(taken) < most:
            place = bisect.bisect_left(self._order, (sent, -(room - overhead), -self._number - 1))
            if room <= overhead or place == len(self._order):
                break
            key = self._order[place]
            if fresh and key[0] > 0:
                break
            if key[0] > sent:
                sent = key[0]
                if -key[1] > room - overhead:
                    continue  # the largest of the next tier does not fit: look for one that does
            news = self._news[-key[2]]
            del self._order[place]
            taken.append(news)
            room -= overhead - key[1]
        for news in taken:
            times, size, number = news.key
            if times + 1 >= limit:
                self._drop(-number)
            else:
                news.key = (times + 1, size, number)
                bisect.insort(self._order, news.key)
        return [news.message for news in taken]

    def _remove(self, number: int) -> None:
        del self._order[bisect.bisect_left(self._order, self._news[number].key)]
        self._drop(number)

    def _drop(self, number: int) -> None:
        news = self._news.pop(number)
        self._octets -= len(news.message)
        if news.about is not None:
            del self._about[news.about]
