"""The SQL of the verbs for MariaDB and MySQL, as SQLAlchemy Core constructs, built once for a pair of models.

It owns the statements and nothing else, as ``statements`` does for PostgreSQL. Its transactions are READ COMMITTED, in
which a row that does not match gives its lock back at once.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    Integer,
    String,
    Text,
    bindparam,
    case,
    delete,
    func,
    insert,
    inspect,
    literal_column,
    null,
    or_,
    select,
    type_coerce,
    update,
)

from sa_proletarian.dialects import MYSQL, TIMESTAMP, statement_now
from sa_proletarian.statements import LIBRARY, MOST_ATTEMPTS


class MySQLStatements:
    """The statements for one pair of models; spans go in as microseconds."""

    def __init__(self, job_model: Any, archived_model: Any) -> None:
        self.job: Any = job_model.__table__
        self._archived: Any = archived_model.__table__
        self._archived_columns = inspect(archived_model).columns
        columns = inspect(job_model).columns
        self.extras: dict[str, Any] = {key: columns[key] for key in columns.keys() if key not in LIBRARY}
        self.payload_is_json: bool = isinstance(self.job.c.payload.type, JSON)
        if not self.payload_is_json:
            self.extras["payload"] = columns["payload"]
        self.candidates: dict[tuple[bool, bool], Any] = {
            (any_type, skip): self._candidates(any_type=any_type, skip=skip)
            for any_type in (True, False)
            for skip in (True, False)
        }
        self.take: Any = self._take()
        self.hold: Any = self._hold()
        self.free: Any = self._fences().with_for_update(skip_locked=True)
        self.waited_for: Any = self._fences().with_for_update()
        self.waiting: Any = self._waiting()
        self.archive: Any = self._archive()
        self.delete: Any = delete(self.job).where(self._among())
        self.reschedule: Any = self._reschedule()
        self.renew: Any = update(self.job).where(self._among()).values(claimed_until=later(bindparam("lease")))
        self.read_extras: Any = select(self.job.c.job_id.label("claimed_job_id"), *self.labelled_extras()).where(
            self._among()
        )

    def labelled_extras(self) -> list[Any]:
        """The app's own columns, under names that cannot collide with ours."""
        return [column.label(f"extra_{key}") for key, column in self.extras.items()]

    def _among(self) -> Any:
        return self.job.c.job_id.in_(bindparam("ids", expanding=True, type_=self.job.c.job_id.type))

    def _candidates(self, *, any_type: bool, skip: bool) -> Any:
        job = self.job.c
        expired = case((job.claimed_until.is_not(None), 1), else_=0)
        conditions = [
            job.queue == bindparam("in_queue"),
            job.process_at <= statement_now(),
            or_(job.claimed_until.is_(None), job.claimed_until <= statement_now()),
        ]
        if not any_type:
            conditions.append(job.job_type.in_(bindparam("known", expanding=True, type_=String())))
        if skip:
            conditions.append(job.crashes + expired != bindparam("skip_crashes", type_=Integer()))
        payload = type_coerce(job.payload, Text) if self.payload_is_json else null()
        statement = (
            select(
                job.job_id,
                job.queue,
                job.job_type,
                payload.label("payload"),
                job.attempts,
                job.enqueued_at,
                job.process_at,
                job.crashes,
                job.last_error,
                expired.label("expired"),
                later(bindparam("lease")).label("until"),
            )
            .where(*conditions)
            .order_by(job.process_at, job.job_id)
            .limit(bindparam("most", type_=Integer()))
            .with_for_update(skip_locked=True)
        )
        return self._in_order(statement)

    def _in_order(self, statement: Any) -> Any:
        """Keep the server from sorting, for which it would lock every row that waits."""
        name = f"ix_{self.job.name}_due"
        if name not in {index.name for index in self.job.indexes}:
            return statement
        for dialect in MYSQL:
            statement = statement.with_hint(self.job, f"FORCE INDEX (`{name}`)", dialect)
        return statement

    def _take(self) -> Any:
        job = self.job.c
        free = job.claimed_until.is_(None)
        # in this order: each assignment sees what those before it have written
        return (
            update(self.job)
            .where(self._among())
            .ordered_values(
                (job.attempts, case((free, func.least(job.attempts, MOST_ATTEMPTS) + 1), else_=job.attempts)),
                (job.crashes, case((free, job.crashes), else_=func.least(job.crashes, MOST_ATTEMPTS) + 1)),
                (job.claim_id, bindparam("token", type_=job.claim_id.type)),
                (job.claimed_by, bindparam("me", type_=Text())),
                (job.claimed_until, bindparam("until", type_=job.claimed_until.type)),
            )
        )

    def _hold(self) -> Any:
        job = self.job.c
        return (
            select(job.job_id)
            .where(job.job_id == bindparam("id", type_=job.job_id.type))
            .where(job.claim_id == bindparam("fence", type_=job.claim_id.type))
            .with_for_update()
        )

    def _fences(self) -> Any:
        return select(self.job.c.job_id, self.job.c.claim_id).where(self._among())

    def _waiting(self) -> Any:
        job = self.job.c
        free = or_(job.claimed_until.is_(None), job.claimed_until <= statement_now())
        return self._fences().where(free).with_for_update(skip_locked=True)

    def _archive(self) -> Any:
        moved = {
            "status": bindparam("status", type_=String()),
            "error": bindparam("error", type_=Text()),
            "finished_at": statement_now(),
        }
        for key in self._archived_columns.keys():
            if key not in moved and (key in self.extras or key in LIBRARY):
                moved[key] = self.extras[key] if key in self.extras else self.job.c[key]
        target = self._archived_columns
        columns = select(*(value.label(key) for key, value in moved.items())).where(self._among())
        return insert(self._archived).from_select([target[key] for key in moved], columns)

    def _reschedule(self) -> Any:
        job = self.job.c
        reported = bindparam("reported", type_=Integer())
        return (
            update(self.job)
            .where(job.job_id == bindparam("id", type_=job.job_id.type))
            .values(
                claim_id=None,
                claimed_by=None,
                claimed_until=None,
                process_at=func.coalesce(later(bindparam("delay")), job.process_at),
                attempts=func.greatest(job.attempts - bindparam("refund", type_=Integer()), 0),
                crashes=case((reported == 1, 0), else_=job.crashes + bindparam("crash", type_=Integer())),
                last_error=func.coalesce(bindparam("error", type_=Text()), job.last_error),
            )
        )


def later(microseconds: Any) -> Any:
    """Give the instant that is so much later than now; NULL if that is NULL."""
    return func.timestampadd(literal_column("MICROSECOND"), microseconds, statement_now(), type_=TIMESTAMP)
