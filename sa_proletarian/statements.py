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
    DateTime,
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
from .scripts import Template, place

if TYPE_CHECKING:
    from .models import ArchivedJobMixin, JobMixin

MOST_ATTEMPTS = 2_147_483_646
JOB_ID, JOB_TYPE, ATTEMPTS, PROCESS_AT, CRASHES, EXPIRED, UNTIL, TAKEN = 0, 2, 4, 6, 7, 9, 10, 11
"""Places of these columns among those of a candidate: they are read for every row, and by name that takes thrice as long."""
SEQSCAN = 4
"""The place of this setting in what a hold gives; before it are the values of a ``Held``."""
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
        self.templates: dict[str, Template] = self._templates() if _is_uuid(job_id) else {}
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
        values: dict[str, Any] = {
            "queue": bindparam("in_queue"),
            "until": later(statement_now(), bindparam("lease", type_=Interval())),
            "most": bindparam("most", type_=Integer()),
        }
        if not any_type:
            values["known"] = bindparam("known", type_=ARRAY(String()))
        if begin:
            values["begin"] = bindparam("begin", type_=job.process_at.type)
        statement = self._candidates_of(**values)
        if skip:
            statement = statement.where(job.crashes + self._expired() != bindparam("skip_crashes", type_=Integer()))
        return statement

    def _expired(self) -> Any:
        return case((self.job.c.claimed_until.is_not(None), 1), else_=0)

    def _candidates_of(self, *, queue: Any, until: Any, most: Any, known: Any = None, begin: Any = None) -> Any:
        job = self.job.c
        conditions = [
            job.queue == queue,
            job.process_at <= statement_now(),
            or_(job.claimed_until.is_(None), job.claimed_until <= statement_now()),
        ]
        if known is not None:
            conditions.append(job.job_type == any_(known))
        if begin is not None:
            conditions.append(job.process_at >= begin)
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
                self._expired().label("expired"),
                until.label("until"),
            )
            .where(*conditions)
            .order_by(job.process_at, job.job_id)
            .limit(most)
            .with_for_update(skip_locked=True, key_share=True, of=self.job)
        )

    def _take(self) -> Any:
        job = self.job.c
        until = bindparam("until", type_=job.claimed_until.type)
        statement: Any = self._taking(bindparam("token", type_=job.claim_id.type), bindparam("me", type_=Text()), until)
        statement = statement.where(job.job_id == any_(_array("ids", job.job_id.type)))
        if self.extras:
            return statement.returning(job.job_id.label("claimed_job_id"), *self.labelled_extras())
        return statement

    def _taking(self, token: Any, worker: Any, until: Any) -> Any:
        job = self.job.c
        free = job.claimed_until.is_(None)
        return update(self.job).values(
            claim_id=token,
            claimed_by=worker,
            claimed_until=until,
            attempts=case((free, func.least(job.attempts, MOST_ATTEMPTS) + 1), else_=job.attempts),
            crashes=case((free, job.crashes), else_=func.least(job.crashes, MOST_ATTEMPTS) + 1),
        )

    def _templates(self) -> dict[str, Template]:
        """Give what can be said in a script; its values are put in later."""
        names = ("lock_timeout", "statement_timeout", "search_path", "role")
        settings = [func.set_config(_said(name), place(number, Text()), True) for number, name in enumerate(names)]
        uuids = (Uuid(), Uuid())
        one, other = (place(number, type_) for number, type_ in enumerate(uuids))
        templates = {
            "hold": Template(self._hold(one, other, place(2, Text())), ("uuid", "uuid", "text")),
            "prepare_settling": Template(select(*settings), ("text",) * len(names)),
            "finish": Template(self._finish_held(one, other), ("uuid", "uuid")),
            "finish_all": Template(
                self._finish(func.unnest(place(0, ARRAY(Uuid())), place(1, ARRAY(Uuid())))), ("uuid[]", "uuid[]")
            ),
        }
        if not self.extras and self._plain():
            for any_type, begin in product((True, False), repeat=2):
                templates[claim_name(any_type, begin)] = self._claim(any_type, begin)
        return templates

    def _plain(self) -> bool:
        """Whether the columns that a claim reads are ours as they come: a driver then reads them as SQLAlchemy does."""
        plain: dict[type, tuple[str, ...]] = {
            Uuid: ("job_id", "claim_id"),
            String: ("queue", "job_type"),
            Integer: ("attempts", "crashes"),
            DateTime: ("enqueued_at", "process_at", "claimed_until"),
            Text: ("last_error",),
        }
        return all(type(self.job.c[name].type) is kind for kind, names in plain.items() for name in names)

    def _claim(self, any_type: bool, begin: bool) -> Template:
        """Claim what is due in one statement, if none of it is a suspect; else claim nothing, and only show it."""
        job = self.job.c
        types = ["text", "interval", "integer", "uuid", "text"]
        until = statement_now() + place(1, Interval())
        values = {"queue": place(0, String()), "until": until, "most": place(2, Integer())}
        if not any_type:
            values["known"] = place(len(types), ARRAY(String()))
            types.append("text[]")
        if begin:
            values["begin"] = place(len(types), job.process_at.type)
            types.append("timestamptz")
        found = self._candidates_of(**values).cte("found")
        ids = func.array(select(found.c.job_id).scalar_subquery(), type_=ARRAY(Uuid()))
        columns: Any = found.c
        suspects = select(columns.job_id).where(columns.crashes + columns.expired > 0)
        taking = self._taking(place(3, Uuid()), place(4, Text()), until)
        taken = taking.where(job.job_id == any_(ids), ~suspects.exists()).returning(job.job_id).cte("taken")
        count = select(func.count()).select_from(taken).scalar_subquery()
        # as text, of which Python's collector knows nothing while it waits
        job_id, *others = found.c
        statement = select(cast(job_id, Text), *others, count.label("taken")).order_by(found.c.process_at, job_id)
        return Template(statement, tuple(types))

    def _finish_held(self, job_id: Any, claim_id: Any) -> Any:
        job = self.job.c
        success = literal_column("'success'", String())
        mine = (job.job_id == job_id, job.claim_id == claim_id)
        archived = self._archiving(mine, status=success, error=cast(null(), Text())).cte("archived")
        moved = select(func.count()).select_from(archived).scalar_subquery()
        # an error where nothing was moved, so that the COMMIT behind it is not carried out
        is_moved = cast(case((moved == 1, "1"), else_=scripts.NOT_MOVED), Integer()) == 1
        return select(cast(func.pg_current_xact_id(), Text)).where(is_moved)

    def _hold(self, job_id: Any, claim_id: Any, wait: Any) -> Any:
        job = self.job.c
        setting = _said("lock_timeout")
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
            func.pg_backend_pid().label("pid"),
            cast(func.pg_current_xact_id(), Text).label("transaction_id"),
            func.current_setting("search_path").label("search_path"),
            func.current_setting("role").label("role"),
            func.current_setting("enable_seqscan").label("seqscan"),
            func.set_config(setting, before.c.value, True),
            func.set_config(_said("idle_in_transaction_session_timeout"), "0", True),
        ).select_from(held.join(before, literal(True)))

    def _archive(self) -> Any:
        job = self.job.c
        fences = self._fences(status=String(), error=Text())
        mine = (job.job_id == fences.c.job_id, job.claim_id == fences.c.claim_id)
        return self._archiving(mine, status=fences.c.status, error=fences.c.error)

    def _finish(self, arrays: Any = None) -> Any:
        """Archive as ``success``; give only the ids of those whose row was not ours to move: hardly ever one."""
        job = self.job.c
        fences = select(self._fences(arrays)).cte("fences")
        mine = (job.job_id == fences.c.job_id, job.claim_id == fences.c.claim_id)
        archived = self._archiving(mine, status=literal_column("'success'", String()), error=cast(null(), Text())).cte(
            "archived"
        )
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

    def _fences(self, arrays: Any = None, **further: Any) -> Any:
        """The table of ``(job_id, claim_id, …)`` that arrives as arrays, one row for each claim."""
        types = {"job_id": self.job.c.job_id.type, "claim_id": self.job.c.claim_id.type, **further}
        if arrays is None:
            arrays = func.unnest(*(_array(f"all_{name}", type_) for name, type_ in types.items()))
        columns = [column(name, type_) for name, type_ in types.items()]
        return arrays.table_valued(*columns).render_derived(name="fences")

    def _job_column(self, key: str) -> Any:
        return self.extras[key] if key in self.extras else self.job.c[key]


class _UuidsAsText(TypeDecorator[Any]):
    """Many UUIDs as the text of one array: drivers write an array item by item, which takes longer than to read it."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str:
        return "{" + ",".join([f"{one.int:032x}" for one in value]) + "}"


def claim_name(any_type: bool, begin: bool) -> str:
    """Give the name of the template that claims jobs of any type, or from a beginning."""
    return f"claim{'_any' if any_type else ''}{'_from' if begin else ''}"


def _said(name: str) -> Any:
    return literal(name, Text(), literal_execute=True)


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
