"""The SQL of the verbs, as SQLAlchemy Core constructs, built once for a pair of models.

It owns the statements and nothing else: what goes into them and what comes out is ``lifecycle``'s. Because they are
constructs, schema translation and execution options of the app's engine apply to them.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    JSON,
    Boolean,
    Integer,
    Interval,
    String,
    Table,
    Text,
    TypeDecorator,
    Uuid,
    any_,
    bindparam,
    case,
    cast,
    column,
    delete,
    func,
    insert,
    inspect,
    literal,
    literal_column,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from . import scripts
from .dialects import clock_now, later, statement_now

if TYPE_CHECKING:
    from .models import ArchivedJobMixin, JobMixin

MOST_ATTEMPTS = 2_147_483_646
CRASHES, EXPIRED = 7, 9
"""Places of these columns among those of a candidate: they are read for every row, and by name that takes thrice as long."""
_PROLETARIANS = ("job_id", "queue", "job_type", "payload", "attempts", "enqueued_at", "process_at")
LIBRARY = frozenset((*_PROLETARIANS, "claim_id", "claimed_by", "claimed_until", "crashes", "last_error"))


class Statements:
    """The statements for one pair of models.

    :ivar extras: the columns that the app has added to the job model, by attribute, and the payload if its type is the
        app's own: what such types make of a value may fail, and shall then fail for one job only.
    :ivar payload_is_json: whether the payload column is JSON, which is then read as text and decoded job by job.
    """

    def __init__(self, job_model: type[JobMixin], archived_model: type[ArchivedJobMixin]) -> None:
        self.job: Table = _table(job_model)
        self._archived = _table(archived_model)
        self._archived_columns = inspect(archived_model).columns
        columns = inspect(job_model).columns
        self.extras: dict[str, Any] = {key: columns[key] for key in columns.keys() if key not in LIBRARY}
        self.payload_is_json: bool = isinstance(self.job.c.payload.type, JSON)
        if not self.payload_is_json:
            self.extras["payload"] = columns["payload"]
        self.candidates: dict[tuple[bool, ...], Any] = {
            flags: self._candidates(*flags) for flags in product((True, False), repeat=3)
        }
        self.take: Any = self._take()
        job_id, claim_id = self.job.c.job_id.type, self.job.c.claim_id.type
        one = (bindparam("id", type_=job_id), bindparam("fence", type_=claim_id))
        self.hold: Any = self._hold(*one, bindparam("wait", type_=Text()))
        self.scripts: dict[str, Any] = self._scripts() if _is_uuid(job_id) else {}
        self.archive: Any = self._archive()
        self.finish: Any = self._finish()
        self.reschedule: Any = self._reschedule()
        self.renew: Any = self._renew()
        self.cancel: Any = self._cancel()

    def labelled_extras(self) -> list[Any]:
        """The app's own columns, under names that cannot collide with ours."""
        return [column.label(f"extra_{key}") for key, column in self.extras.items()]

    def _candidates(self, any_type: bool, skip: bool, begin: bool) -> Any:
        job = self.job.c
        expired = case((job.claimed_until.is_not(None), 1), else_=0)
        conditions = [
            job.queue == bindparam("in_queue"),
            job.process_at <= statement_now(),
            or_(job.claimed_until.is_(None), job.claimed_until <= statement_now()),
        ]
        if not any_type:
            conditions.append(job.job_type == any_(bindparam("known", type_=ARRAY(String()))))
        if begin:
            conditions.append(job.process_at >= bindparam("begin", type_=job.process_at.type))
        if skip:
            conditions.append(job.crashes + expired != bindparam("skip_crashes", type_=Integer()))
        payload = cast(job.payload, Text) if self.payload_is_json else null()
        return (
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
                later(statement_now(), bindparam("lease", type_=Interval())).label("until"),
            )
            .where(*conditions)
            .order_by(job.process_at, job.job_id)
            .limit(bindparam("most", type_=Integer()))
            .with_for_update(skip_locked=True, key_share=True, of=self.job)
        )

    def _take(self) -> Any:
        job = self.job.c
        free = job.claimed_until.is_(None)
        statement: Any = (
            update(self.job)
            .where(job.job_id == any_(_array("ids", job.job_id.type)))
            .values(
                claim_id=bindparam("token", type_=job.claim_id.type),
                claimed_by=bindparam("me", type_=Text()),
                claimed_until=bindparam("until", type_=job.claimed_until.type),
                attempts=case((free, func.least(job.attempts, MOST_ATTEMPTS) + 1), else_=job.attempts),
                crashes=case((free, job.crashes), else_=func.least(job.crashes, MOST_ATTEMPTS) + 1),
            )
        )
        if self.extras:
            return statement.returning(job.job_id.label("claimed_job_id"), *self.labelled_extras())
        return statement

    def _scripts(self) -> dict[str, Any]:
        """Give what can be said about one job in a script: its id and fence are put in later."""
        job = self.job.c
        tokens = (scripts.JOB_ID, scripts.CLAIM_ID)
        job_id, claim_id = (literal_column(f"CAST('{token}' AS UUID)", Uuid()) for token in tokens)
        success = literal_column("'success'", String())
        mine = (job.job_id == job_id, job.claim_id == claim_id)
        archived = self._archiving(mine, status=success, error=cast(null(), Text())).cte("archived")
        moved = select(func.count()).select_from(archived).scalar_subquery()
        # an error where nothing was moved, so that the COMMIT behind it is not carried out
        is_moved = cast(case((moved == 1, "1"), else_=scripts.NOT_MOVED), Integer()) == 1
        finish = select(cast(func.pg_current_xact_id(), Text).label(scripts.ANSWER)).where(is_moved)
        return {"hold": self._hold(job_id, claim_id, literal(scripts.WAIT, Text())), "finish": finish}

    def _hold(self, job_id: Any, claim_id: Any, wait: Any) -> Any:
        job = self.job.c
        setting = literal("lock_timeout", Text(), literal_execute=True)
        before = select(
            func.current_setting(setting).label("value"),
            func.set_config(setting, wait, True).label("waiting"),
        ).cte("before")
        held = (
            select(job.job_id)
            .select_from(self.job.join(before, literal(True)))
            .where(job.job_id == job_id, job.claim_id == claim_id)
            .with_for_update(key_share=True, of=self.job)
            .cte("held")
        )
        return select(
            func.set_config(setting, before.c.value, True).label(scripts.ANSWER),
            func.set_config(literal("idle_in_transaction_session_timeout", Text(), literal_execute=True), "0", True),
            func.current_setting("search_path").label("search_path"),
            func.current_setting("role").label("role"),
            func.pg_backend_pid().label("pid"),
            cast(func.pg_current_xact_id(), Text).label("transaction_id"),
        ).select_from(held.join(before, literal(True)))

    def _archive(self) -> Any:
        job = self.job.c
        fences = self._fences(status=String(), error=Text())
        mine = (job.job_id == fences.c.job_id, job.claim_id == fences.c.claim_id)
        return self._archiving(mine, status=fences.c.status, error=fences.c.error)

    def _finish(self) -> Any:
        """Archive as ``success``; give only the ids of those whose row was not ours to move: hardly ever one."""
        job = self.job.c
        fences = select(self._fences()).cte("fences")
        mine = (job.job_id == fences.c.job_id, job.claim_id == fences.c.claim_id)
        archived = self._archiving(mine, status=literal("success", String()), error=cast(null(), Text())).cte("archived")
        moved = select(archived.c.job_id)
        return select(fences.c.job_id).where(fences.c.job_id.not_in(moved))

    def _cancel(self) -> Any:
        """Archive one job that nobody works at and nobody holds; without waiting for anybody."""
        job = self.job.c
        free = (
            select(job.job_id)
            .where(job.job_id == bindparam("id", type_=job.job_id.type))
            .where(or_(job.claimed_until.is_(None), job.claimed_until <= statement_now()))
            .with_for_update(skip_locked=True, of=self.job)
            .cte("free")
        )
        status, error = bindparam("status", type_=String()), bindparam("error", type_=Text())
        return self._archiving((job.job_id == free.c.job_id,), status=status, error=error)

    def _archiving(self, conditions: tuple[Any, ...], *, status: Any, error: Any) -> Any:
        moved = {"status": status, "error": error, "finished_at": clock_now()}
        for key in self._archived_columns.keys():
            if key not in moved and (key in self.extras or key in LIBRARY):
                moved[key] = self._job_column(key)
        values = (value.label(key) for key, value in moved.items())
        gone = delete(self.job).where(*conditions).returning(*values).cte("gone")
        target = self._archived_columns
        return (
            insert(self._archived)
            .from_select([target[key] for key in moved], select(*(gone.c[key] for key in moved)))
            .returning(self._archived.c.job_id, cast(func.pg_current_xact_id(), Text))
        )

    def _reschedule(self) -> Any:
        job = self.job.c
        fences = self._fences(delay=Interval(), refund=Integer(), crash=Integer(), reported=Boolean(), error=Text())
        return (
            update(self.job)
            .where(job.job_id == fences.c.job_id, job.claim_id == fences.c.claim_id)
            .values(
                claim_id=None,
                claimed_by=None,
                claimed_until=None,
                process_at=func.coalesce(later(clock_now(), fences.c.delay), job.process_at),
                attempts=func.greatest(job.attempts - fences.c.refund, 0),
                crashes=case((fences.c.reported, 0), else_=job.crashes + fences.c.crash),
                last_error=func.coalesce(fences.c.error, job.last_error),
            )
            .returning(job.job_id, cast(func.pg_current_xact_id(), Text))
        )

    def _renew(self) -> Any:
        job = self.job.c
        fences = self._fences()
        free = (
            select(job.job_id)
            .select_from(self.job.join(fences, job.job_id == fences.c.job_id))
            .where(job.claim_id == fences.c.claim_id)
            .with_for_update(key_share=True, skip_locked=True, of=self.job)
            .subquery("free")
        )
        until = later(statement_now(), bindparam("lease", type_=Interval()))
        return update(self.job).where(job.job_id == free.c.job_id).values(claimed_until=until)

    def _fences(self, **further: Any) -> Any:
        """The table of ``(job_id, claim_id, …)`` that arrives as arrays, one row for each claim."""
        types = {"job_id": self.job.c.job_id.type, "claim_id": self.job.c.claim_id.type, **further}
        arrays = [_array(f"all_{name}", type_) for name, type_ in types.items()]
        columns = [column(name, type_) for name, type_ in types.items()]
        return func.unnest(*arrays).table_valued(*columns).render_derived(name="fences")

    def _job_column(self, key: str) -> Any:
        return self.extras[key] if key in self.extras else self.job.c[key]


class _UuidsAsText(TypeDecorator[Any]):
    """Many UUIDs as the text of one array: drivers write an array item by item, which takes longer than to read it."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str:
        return "{" + ",".join([f"{one.int:032x}" for one in value]) + "}"


def _array(name: str, type_: Any) -> Any:
    """Give the parameter that takes a list of values of a type."""
    if _is_uuid(type_):
        return cast(bindparam(name, type_=_UuidsAsText()), ARRAY(type_))
    return bindparam(name, type_=ARRAY(type_))


def _is_uuid(type_: Any) -> bool:
    uuids: Any = Uuid
    return type(type_) is uuids and type_.as_uuid


def _table(model: Any) -> Table:
    table: Table = model.__table__
    return table
