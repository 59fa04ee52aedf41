"""Values that Clojure has and Python has not, as they appear in payloads.

It owns small immutable types. Those that are written as text in Clojure too are texts here, equal to the plain text and with
its hash: of the payload ``{:email "a@b.c"}`` a handler reads ``job.payload["email"]``. That they are keywords and not
strings is kept for the way back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self


class _Text(str):
    """Base of the types that are texts."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if not isinstance(text, str):
            raise TypeError(f"{cls.__name__} takes a text, got {text!r}")
        return super().__new__(cls, text)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str.__repr__(self)})"

    @classmethod
    def read(cls, text: str) -> Self:
        """Make the value of a text that Clojure has written, whatever it holds."""
        return str.__new__(cls, text)


class _Named(_Text):
    """Base of keywords and symbols."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        named = super().__new__(cls, text)
        if not named or named.startswith(":"):
            raise ValueError(
                f'{cls.__name__} takes a name without a colon in front, as "email" or "my.app/email"; got {text!r}'
            )
        return named

    @property
    def namespace(self) -> str | None:
        """What stands before the first slash: ``"my.app"`` in ``my.app/email``; ``None`` without one."""
        before, slash, _ = self.partition("/")
        return before if slash and self != "/" else None

    @property
    def name(self) -> str:
        """What stands after the namespace: ``"email"`` in ``my.app/email``."""
        return str(self) if self.namespace is None else self.partition("/")[2]


class Keyword(_Named):
    """A Clojure keyword, written without its colon: ``Keyword("my.app/email")`` is ``:my.app/email``."""

    __slots__ = ()


class Symbol(_Named):
    """A Clojure symbol."""

    __slots__ = ()


class URI(_Text):
    """A URI; not checked."""

    __slots__ = ()


class Char(_Text):
    """A character of Java: one in the basic multilingual plane, up to U+FFFF."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        char = super().__new__(cls, text)
        if len(char) != 1 or char > "\uffff":
            raise ValueError(f"Char takes one character up to U+FFFF, got {text!r}")
        return char


@dataclass(frozen=True, slots=True)
class TaggedValue:
    """A value of a type that has no default handler: its tag, and what represents it.

    It is what an unknown tag is read as, and the way to write one: ``TaggedValue("point", [10, 20])``.
    """

    tag: str
    rep: Any

    def __post_init__(self) -> None:
        if not isinstance(self.tag, str):
            raise TypeError(f"a tag must be a text, got {self.tag!r}")
        if not self.tag:
            raise ValueError("a tag must not be empty")


class FrozenMap(Mapping[Any, Any]):
    """A map that can be a key or a member of a set; equal to the ``dict`` with the same items."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[Any, Any]) -> None:
        self._items = dict(items)

    def __getitem__(self, key: Any) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return f"FrozenMap({self._items!r})"


def frozen(value: Any) -> Any:
    """Give what was read in a form that has a hash: lists as tuples, maps as :class:`FrozenMap`."""
    kind: Any = type(value)  # pyright: ignore[reportUnknownVariableType]
    if kind is list:
        return tuple(map(frozen, value))
    if kind is dict:
        return FrozenMap({key: frozen(item) for key, item in value.items()})
    if kind is TaggedValue:
        return TaggedValue(value.tag, frozen(value.rep))
    return value
