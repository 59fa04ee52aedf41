"""The serializer: payloads as Transit text, as Proletarian stores them by default.

It owns the text. What each type becomes is in ``writing`` and ``reading``; values that only Clojure has are in ``values``.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn, Protocol

from sa_proletarian.serializers import MAX_BYTES

from .reading import Object, Reader
from .writing import Writer


class Serializer(Protocol):
    """Turns payloads into text and back, as Proletarian's protocol of this name does."""

    def encode(self, payload: Any) -> str:
        """Give the text to store; raise ``ValueError`` or ``TypeError`` for what cannot be stored."""
        ...

    def decode(self, text: str) -> Any:
        """Give back what the handler shall see as ``job.payload``."""
        ...


class TransitSerializer:
    """Transit on JSON, with the types that Transit's default handlers know, and Proletarian's instants.

    ============================================ =========== ==================================
    Python                                       Transit     comes back as
    ============================================ =========== ==================================
    ``None``, ``bool``, ``str``, ``float``       the same    the same
    ``int``                                      integer     ``int`` (beyond 64 bits a BigInt)
    ``Decimal``, ``Fraction``                    f, ratio    the same
    aware ``datetime``                           m           ``datetime`` in UTC, milliseconds
    ``UUID``, :class:`URI`, :class:`Char`        u, r, c     the same
    ``bytes``                                    b           ``bytes``
    :class:`Keyword`, :class:`Symbol`            :, $        the same
    ``list``, ``tuple``                          array       ``list``
    ``set``, ``frozenset``                       set         ``frozenset``
    ``dict`` with keys of any of these           map, cmap   ``dict``
    :class:`TaggedValue`                         its tag     the same
    ============================================ =========== ==================================

    Lists inside of keys and sets come back as tuples. Clojure's lists come as ``list``. ``TypeError`` for other types and
    naive datetimes, ``ValueError`` for lone surrogates, more than 100 levels and more than 1 MiB of text.

    :param keyword_keys: write texts that are keys of maps as keywords, which is what a Clojure handler looks for:
        ``{"email": …}`` becomes ``{:email …}``. Default off: they become strings.
    """

    def __init__(self, *, keyword_keys: bool = False) -> None:
        self._keyword_keys = keyword_keys

    def encode(self, payload: Any) -> str:
        text = _compact(Writer(keyword_keys=self._keyword_keys).write(payload))
        if len(text) > MAX_BYTES:
            raise ValueError(f"payload is too large: {len(text)} bytes of Transit, at most {MAX_BYTES} are allowed")
        return text

    def decode(self, text: str) -> Any:
        return Reader().read(json.loads(text, object_pairs_hook=Object, parse_constant=_refuse))


# what is ASCII passes whatever encoding the database has
_compact = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"payload is not JSON: it holds {constant}")
