"""Names of queues and job types: Clojure keywords, in the form in which Proletarian stores them.

It owns that form (``:my.app/email``, with the colon) and the check that Clojure's EDN reader will read it: one name that
it cannot read would stop every Clojure worker of the queue.
"""

from __future__ import annotations

import re

from sa_proletarian.tables import NAME_LIMIT

from .values import Keyword

DEFAULT_QUEUE = ":proletarian/default"

# letters and digits of any script, as in EDN; neither "::" nor a colon at the end of a part
_PART = r"(?![0-9#':])(?:[\w.*+!?$%&=<>'#-]|:(?!:|/|\Z))+"
_NAME = re.compile(rf":{_PART}(?:/{_PART})?")


def stored_name(what: str, name: object) -> str:
    """Give the stored form of ``name``: a text with or without the colon in front, or a :class:`Keyword`.

    ``TypeError`` or ``ValueError`` for what is no keyword that Clojure can read back.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a text or a Keyword, got {name!r}")
    text = str.__str__(name)
    stored = text if text.startswith(":") and not isinstance(name, Keyword) else f":{text}"
    if len(stored) > NAME_LIMIT or not _NAME.fullmatch(stored):
        raise ValueError(
            f"{what} must be a Clojure keyword of at most {NAME_LIMIT} characters, as my.app/email or :my.app/email; "
            f"got {text[:250]!r}"
        )
    return stored
