"""Registries that wake nobody, for enqueues whose own cost is measured, and for filling."""

from __future__ import annotations

from typing import Any

from sa_proletarian import Proletarian


def quiet_jobs() -> Proletarian[Any, Any]:
    try:
        return Proletarian(wake=False)
    except TypeError:  # before there were wake-ups
        return Proletarian()
