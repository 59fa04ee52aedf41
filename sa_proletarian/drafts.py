"""Drafts: jobs that are checked and encoded as the job's constructor does it, but never become objects.

It owns the short way from the items of ``enqueue_many`` to the values of their columns, which it keeps by column and not
by job: a pair costs its payload and little else. Models with a constructor of their own get the long way. It refuses to
touch a connection.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeAlias, cast
from uuid import UUID

from sqlalchemy import inspect
from sqlalchemy.orm import Mapper

from . import serializers
from .job_ids import uuid7, uuid7s
from .models import Job, JobMixin, checked_name, due_at, given_id
from .serializers import Binding, JSONSerializer

Item: TypeAlias = tuple[str | Callable[..., Any], Any] | Mapping[str, Any]
"""``(job_type, payload)``, or a mapping of the arguments of ``enqueue``."""

_OURS = frozenset(Job.__table__.c.keys())


@dataclass(slots=True)
class Group:
    """Checked jobs in a row that have values for the same columns.

    :param shared: the values that all of them have.
    :param own: for each other column, but for the payload, the values of one after the other.
    :param texts: their payloads as JSON text; ``None`` where there is no sure one, and ``own`` has the payload.
    """

    shared: dict[str, Any]
    own: dict[str, list[Any]]
    texts: list[str] | None
    count: int = 0

    def rows(self) -> list[dict[str, Any]]:
        """Give the values of each job by themselves."""
        own = self.own if self.texts is None else {**self.own, "payload": [serializers.loads(text) for text in self.texts]}
        return [{**self.shared, **dict(zip(own, values, strict=True))} for values in zip(*own.values(), strict=True)]


class Drafts:
    """Makes drafts of items, by the rules of one model and with the options of one call."""

    def __init__(
        self,
        model: type[JobMixin],
        *,
        type_of: Callable[[Any], str],
        now: Callable[[], datetime],
        queue: str,
        process_at: datetime | None,
        process_in: timedelta | None,
        columns: Mapping[str, Any],
    ) -> None:
        self.mapper: Mapper[Any] = inspect(model)
        self._model = model
        self._type_of = type_of
        self._now = now
        self._queue = checked_name("queue", queue)
        self._when: dict[str, Any] = {"process_at": process_at, "process_in": process_in}
        self._columns = self._checked_columns(columns)
        self._constructs = not _has_our_constructor(self.mapper)
        self._makes_uuids = model.job_id_strategy is uuid7 and self.mapper.columns["job_id"].type.python_type is UUID
        self._writes_texts = type(model.serializer) is JSONSerializer
        self._takes_pairs = self._makes_uuids and self._writes_texts and not self._constructs
        self._types: dict[Any, str] = {}
        self.groups: list[Group] = []
        self._pairs: Group | None = None

    def begin(self) -> None:
        """Begin a chunk: read the clock for its jobs; wrong options are refused here."""
        self._enqueued_at = self._now()
        self._process_at = due_at(self._enqueued_at, **self._when)
        self.groups = []
        self._pairs = None

    def take(self, item: Item) -> int:
        """Check an item as the job's constructor does, and add it; give the length of its payload's text, where it has one.

        ``TypeError`` or ``ValueError`` if it cannot be a job.
        """
        if self._takes_pairs and type(item) is tuple and len(item) == 2:
            return self._take_pair(*item)
        self._end_pairs()
        job_type, payload, options = _parts(item)
        if self._constructs:
            self._add(self._constructed(job_type, payload, options), None)
            return 0
        values = self._values(job_type, options)
        values["payload"], text = self._encoded(payload, Binding(values.get("job_id"), values["queue"], values["job_type"]))
        self._add(values, text)
        return len(text)

    def end(self) -> list[Group]:
        """End the chunk and give its groups."""
        self._end_pairs()
        return self.groups

    def _take_pair(self, job_type: Any, payload: Any) -> int:
        group = self._pairs
        if group is None:
            group = self._pairs = Group(self._shared(), {"job_type": []}, [])
            self.groups.append(group)
        job_type = self._type(job_type)
        text = _ascii(serializers.text_of(payload))
        group.own["job_type"].append(job_type)
        group.texts.append(text)  # type: ignore[union-attr]
        return len(text)

    def _end_pairs(self) -> None:
        """Give the pairs their ids, before an item after them gets one: ids keep the order of the items."""
        group, self._pairs = self._pairs, None
        if group is not None:
            group.count = len(group.own["job_type"])
            group.own["job_id"] = list(uuid7s(group.count))

    def _add(self, values: dict[str, Any], text: str | None) -> None:
        group = self.groups[-1] if self.groups else None
        if text is not None:
            del values["payload"]
        if group is None or group.shared or group.own.keys() != values.keys() or (group.texts is None) != (text is None):
            group = Group({}, {key: [] for key in values}, None if text is None else [])
            self.groups.append(group)
        for key, value in values.items():
            group.own[key].append(value)
        if text is not None:
            assert group.texts is not None
            group.texts.append(text)
        group.count += 1

    def _shared(self) -> dict[str, Any]:
        return {
            "queue": self._queue,
            "attempts": 0,
            "enqueued_at": self._enqueued_at,
            "process_at": self._process_at,
            "crashes": 0,
            **self._columns,
        }

    def _values(self, job_type: Any, options: dict[str, Any]) -> dict[str, Any]:
        values = {"job_type": self._type(job_type), **self._shared()}
        job_id = self._apply(values, options) if options else None
        return {**given_id(self._model, job_id), **values}

    def _apply(self, values: dict[str, Any], options: dict[str, Any]) -> Any:
        """Overwrite ``values`` by the options of one item, and give the id that they name."""
        job_id = options.pop("job_id", None)
        if "queue" in options:
            values["queue"] = checked_name("queue", options.pop("queue"))
        if "process_at" in options or "process_in" in options:
            when = {key: options.pop(key, None) for key in self._when}
            values["process_at"] = due_at(self._enqueued_at, **when)
        values.update(self._checked_columns(options))
        return job_id

    def _type(self, target: Any) -> str:
        try:
            return self._types[target]
        except KeyError:
            self._types[target] = name = self._named(target)
            return name
        except TypeError:  # not hashable
            return self._named(target)

    def _named(self, target: Any) -> str:
        if not isinstance(target, str) and not callable(target):
            raise TypeError(f"a job type must be a text or a registered handler, got a {type(target).__name__}")
        return checked_name("job_type", self._type_of(target))

    def _encoded(self, payload: Any, binding: Binding) -> tuple[Any, str]:
        serializer = self._model.serializer
        try:
            value, text = serializers.encoded(serializer, payload, binding)
        except (TypeError, ValueError) as error:
            if type(serializer) is JSONSerializer:
                raise
            # the app's own serializer may quote what it was given
            refusal = f"{type(serializer).__name__} refuses the payload with a {type(error).__name__}"
            raise same_kind(error, refusal) from error
        return value, _ascii(text)

    def _constructed(self, job_type: Any, payload: Any, options: dict[str, Any]) -> dict[str, Any]:
        """Let a constructor of the app's own make the job."""
        when = {} if "process_at" in options or "process_in" in options else self._when
        given: dict[str, Any] = {"queue": self._queue, **when, "enqueued_at": self._enqueued_at, **self._columns, **options}
        job = self._model(self._type(job_type), payload, **given)
        made = inspect(job).dict
        return {key: made[key] for key in self.mapper.columns.keys() if key in made}

    def _checked_columns(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        for key in columns:
            if key in _OURS or key not in self.mapper.columns:
                raise TypeError(f"{key!r} is not a column that can be set on {self._model.__name__}")
        return dict(columns)


def _ascii(text: str) -> str:
    """Give the JSON text as SQLAlchemy's JSON type does: what is ASCII passes whatever encoding the connection has."""
    return text if text.isascii() else json.dumps(serializers.loads(text))


def same_kind(error: Exception, message: str) -> Exception:
    """Give a ``TypeError`` for a ``TypeError``, else a ``ValueError``."""
    return TypeError(message) if isinstance(error, TypeError) else ValueError(message)


def _parts(item: Any) -> tuple[Any, Any, dict[str, Any]]:
    if isinstance(item, Mapping):
        options: dict[str, Any] = {**item}
        if "job_type" not in options:
            raise TypeError("a mapping must hold a job_type, and may hold a payload and options of enqueue")
        return options.pop("job_type"), options.pop("payload", None), options
    if _is_pair(item):
        return item[0], item[1], {}
    if isinstance(item, JobMixin):
        raise TypeError("got a ready job: add it to the session, or give its arguments as a mapping")
    raise TypeError(f"expected (job_type, payload) or a mapping of enqueue's arguments, got a {type(item).__name__}")


def _is_pair(item: Any) -> bool:
    return isinstance(item, Sequence) and not isinstance(item, (str, bytes, bytearray)) and len(cast("Any", item)) == 2


def _has_our_constructor(mapper: Mapper[Any]) -> bool:
    """Say whether nothing of the app's takes part in making a job: no ``__init__``, validator or inheritance of models."""
    inits = [vars(kind)["__init__"] for kind in mapper.class_.__mro__[1:] if "__init__" in vars(kind)]
    original: Any = mapper.class_manager.original_init
    ours = JobMixin.__init__
    after = inits[inits.index(ours) + 1 :] if ours in inits else [original]
    from_sqlalchemy = bool(after) and str(getattr(after[0], "__module__", "")).startswith("sqlalchemy.")
    plain = not mapper.validators and mapper.inherits is None and mapper.polymorphic_on is None
    return original is ours and from_sqlalchemy and plain
