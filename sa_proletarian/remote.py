"""What runs in an executor's process: one call of a function of the app, and the way there and back.

It owns how call and answer travel: as bytes that only this room packs and unpacks, so that what cannot be sent is one
job's failure and never the end of the process, or of the executor. It refuses to know of jobs and databases.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from .errors import ComputationFailed, describe, frames

Answer = tuple[bytes | None, bytes | None, str]
"""What the function gave, or what it raised and where."""


def nothing() -> None:
    """Do nothing, to see whether an executor works."""


def pack(function: Callable[[Any], Any], payload: Any) -> bytes:
    """Pack a call: the function goes by its name, as ``pickle`` sends it."""
    try:
        return pickle.dumps((function, payload))
    except Exception as error:
        raise TypeError(
            f"the call cannot be sent to another process ({describe(error)}): it takes a function that can be imported by "
            "its name, and a payload that can be pickled"
        ) from error


def call(packed: bytes, token: str) -> Answer:
    """Carry out a packed call.

    :param token: another one for every call: an executor that does equal calls once, as dask does, sees none that are equal.
    """
    try:
        function, payload = pickle.loads(packed)  # noqa: S301 (our own)
        return pickle.dumps(function(payload)), None, ""
    except BaseException as error:  # sys.exit() in the function is no reason to lose the process
        return None, _packed(error), frames(error)


def unpack(answer: Answer) -> Any:
    """Give what the function gave, or raise what it raised."""
    result, raised, where = answer
    if raised is None:
        assert result is not None
        return pickle.loads(result)  # noqa: S301 (a process of our own made it)
    error = pickle.loads(raised)  # noqa: S301
    error.proletarian_frames = where
    raise error


def _packed(error: BaseException) -> bytes:
    """Pack an error, or one in its words where it does not survive the way: many that take several arguments do not."""
    try:
        packed = pickle.dumps(error)
        pickle.loads(packed).proletarian_frames = ""  # noqa: S301
    except Exception:
        return pickle.dumps(ComputationFailed(describe(error)))
    return packed
