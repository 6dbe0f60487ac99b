"""Whole numbers as people write them."""

from __future__ import annotations


def whole(text: str, least: int, most: int) -> int | None:
    """The number that a text of ASCII digits writes; None when it is no such text, or not between the bounds."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 20):
        return None
    number = int(text)
    return number if least <= number <= most else None
