"""Waiting for what nobody tells: by looking again, here alone and at one pace."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

LOOK = 0.05


def until(condition: Callable[[], Any], within: float, told: Callable[[], str] | None = None) -> Any:
    """Look until ``condition`` holds, and give what it gave; what takes longer fails with what is ``told``, if anything."""
    pace, deadline = threading.Event(), time.monotonic() + within
    while not (found := condition()) and time.monotonic() < deadline:
        pace.wait(LOOK)
    assert found or told is None, f"not in {within} s: {told()}"
    return found
