"""Which verbs speak to which database.

It owns the choice, made once for each worker or call, when its engine is known. It refuses to know what a verb says.
"""

from __future__ import annotations

import functools
from typing import Any

from .bulletin import Bulletin
from .cancellation import Cancelling
from .dialects import MYSQL
from .lifecycle import Lifecycle
from .mysql.lifecycle import MySQLLifecycle
from .mysql.notices import MySQLBulletin, MySQLCancelling, MySQLRoster
from .roster import Roster


def lifecycle_for(dialect: str, job_model: Any, archived_model: Any) -> Lifecycle:
    """Give the verbs for a pair of models on a database whose dialect has this name."""
    kind = MySQLLifecycle if dialect in MYSQL else Lifecycle
    return kind(job_model, archived_model)


def roster_for(lifecycle: Lifecycle) -> Roster | None:
    """Give the roster beside the job model of ``lifecycle``."""
    kind = MySQLRoster if isinstance(lifecycle, MySQLLifecycle) else Roster
    return kind.beside(lifecycle.job_model)


def bulletin_for(lifecycle: Lifecycle, *, worker_id: str) -> Bulletin | None:
    """Give the bulletin beside the job model of ``lifecycle``."""
    kind = MySQLBulletin if isinstance(lifecycle, MySQLLifecycle) else Bulletin
    return kind.beside(lifecycle.job_model, worker_id=worker_id)


def cancelling_for(lifecycle: Lifecycle) -> Cancelling:
    """Give the verbs for cancelling what ``lifecycle`` moves."""
    kind = MySQLCancelling if isinstance(lifecycle, MySQLLifecycle) else Cancelling
    return kind(lifecycle)


@functools.lru_cache(maxsize=32)
def cancelling(dialect: str, job_model: Any, archived_model: Any) -> Cancelling:
    """Give the verbs for cancelling jobs of a pair of models."""
    return cancelling_for(lifecycle_for(dialect, job_model, archived_model))
