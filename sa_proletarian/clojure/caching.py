"""Transit's cache: what is written once in full and then by a code.

It owns the codes, and the rule for what gets one. Writer and reader meet the same texts in the same order, so that their
counts stay in step without being told.
"""

from __future__ import annotations

from typing import Any

BASE = 48
DIGITS = 44
MOST = DIGITS * DIGITS
LEAST_LENGTH = 4

MAP_MARKER = "^ "


class WriteCache:
    """Gives for a text what is to be written: itself the first time, then its code."""

    def __init__(self) -> None:
        self._codes: dict[str, str] = {}

    def written(self, text: str, *, key: bool) -> str:
        """Give what stands for ``text`` here; ``key`` says whether it is the key of a map."""
        if not is_cacheable(text, key=key):
            return text
        if (known := self._codes.get(text)) is not None:
            return known
        if len(self._codes) == MOST:
            self._codes.clear()
        self._codes[text] = code(len(self._codes))
        return text


class ReadCache:
    """Keeps what texts were read as, in the order in which the writer met them."""

    def __init__(self) -> None:
        self._values: list[Any] = [None] * MOST
        self._filled = 0
        self._next = 0

    def keep(self, value: Any) -> None:
        """Keep what a cacheable text was read as."""
        if self._next == MOST:
            self._next = 0
        self._values[self._next] = value
        self._next += 1
        self._filled = max(self._filled, self._next)

    def recall(self, text: str) -> Any:
        """Give what the code ``text`` stands for; ``ValueError`` when nothing does."""
        at = index(text)
        if not 0 <= at < self._filled:
            raise ValueError("payload names a cache code that stands for nothing")
        return self._values[at]


def is_cacheable(text: str, *, key: bool) -> bool:
    """Say whether ``text`` gets a code: keys, keywords, symbols and tags that are long enough to be worth it."""
    return _is_long(text) and (key or text[:2] in ("~:", "~$", "~#"))


def is_code(text: str) -> bool:
    """Say whether ``text`` stands for something that was read before."""
    return text.startswith("^") and text != MAP_MARKER


def code(at: int) -> str:
    """Give the code of the cache's entry number ``at``: one digit while that is enough, then two."""
    high, low = divmod(at, DIGITS)
    return f"^{chr(high + BASE)}{chr(low + BASE)}" if high else f"^{chr(low + BASE)}"


def index(text: str) -> int:
    """Give the number of the entry that the code ``text`` names; -1 for what is no code."""
    digits = [ord(character) - BASE for character in text[1:]]
    if len(digits) not in (1, 2) or not all(0 <= digit < DIGITS for digit in digits):
        return -1
    return digits[0] if len(digits) == 1 else digits[0] * DIGITS + digits[1]


def _is_long(text: str) -> bool:
    """Measure as Java does, where a character beyond U+FFFF counts as two."""
    return len(text) >= LEAST_LENGTH or (not text.isascii() and len(text.encode("utf-16-le")) >= 2 * LEAST_LENGTH)
