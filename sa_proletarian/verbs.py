"""Which verbs speak to which database.

It owns the choice, made once for each worker or call, when its engine is known. It refuses to know what a verb says.
"""

from __future__ import annotations

import functools
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine

from . import arguments
from .beacons import Life
from .bulletin import Bulletin
from .cancellation import Cancelling
from .dialects import MYSQL
from .leases import Leases
from .lifecycle import Lifecycle
from .mysql.beacons import MySQLLife
from .mysql.leases import MySQLLeases
from .mysql.lifecycle import MySQLLifecycle
from .mysql.notices import MySQLBulletin, MySQLCancelling, MySQLRoster
from .mysql.pruning import MySQLPasses, MySQLPruning
from .pruning import Passes, Progress, Pruning, checked, sweep
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


def leases_for(lifecycle: Lifecycle) -> Leases:
    """Give the verb on the leases of those that have died."""
    kind = MySQLLeases if isinstance(lifecycle, MySQLLifecycle) else Leases
    return kind(lifecycle.job_model)


def life_for(lifecycle: Lifecycle) -> Life:
    """Give the beacons of workers that live."""
    return MySQLLife() if isinstance(lifecycle, MySQLLifecycle) else Life()


def passes_for(dialect: str, job_model: Any, archived_model: Any, older_than: timedelta) -> Passes:
    """Give the verbs on passes over an archive."""
    kind = MySQLPasses if dialect in MYSQL else Passes
    return kind(job_model, archived_model, older_than)


def pruning_for(dialect: str, archived_model: Any, **options: Any) -> Pruning:
    """Give the verbs on an archive's old rows, for checked ``options``."""
    return checked(MySQLPruning if dialect in MYSQL else Pruning, archived_model, **options)


def prune(
    engine: Engine,
    archived_model: Any,
    older_than: Any,
    *,
    queue: Any,
    status: Any,
    dry_run: bool,
    progress: Progress | None,
) -> int:
    """Check the arguments of ``jobs.prune``, then sweep by ``engine``, which is disposed of."""
    age = arguments.span("older_than", older_than, timedelta(0))
    pruning = pruning_for(engine.dialect.name, archived_model, queue=queue, status=status, progress=progress)
    try:
        return sweep(engine, pruning, age, dry_run=bool(dry_run), progress=progress)
    finally:
        engine.dispose()


@functools.lru_cache(maxsize=32)
def cancelling(dialect: str, job_model: Any, archived_model: Any) -> Cancelling:
    """Give the verbs for cancelling jobs of a pair of models."""
    return cancelling_for(lifecycle_for(dialect, job_model, archived_model))
