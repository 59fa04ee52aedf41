"""What a worker knows of the rows that it moves: candidates, claims, and the transactions that hold jobs.

It owns values that were read in bulk and are taken apart when somebody asks. It refuses to touch a database.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from .statements import ATTEMPTS, CRASHES, EXPIRED, JOB_ID, JOB_TYPE, MOST_ATTEMPTS, PROCESS_AT, UNTIL


class Claim:
    """A job that this worker has claimed: the row as it stands after the claim, the payload still in its stored form.

    :param values: the row's values by attribute.
    :ivar unreadable: why the app's own columns could not be read; the run fails with it.
    """

    __slots__ = (
        "_holder",
        "_in_script",
        "_job_id",
        "_row",
        "_values",
        "attempts",
        "claim_id",
        "claimed_at",
        "crashes",
        "job_type",
        "renewed_at",
        "unreadable",
    )

    def __init__(
        self, values: dict[str, Any] | None, job_id: Any, claim_id: UUID, job_type: str, attempts: int, crashes: int
    ) -> None:
        self._values = values
        self._row: Any = None
        self._holder: tuple[str, datetime] | None = None
        self._in_script: bool = False
        self._job_id: Any = job_id
        self.claim_id: UUID = claim_id
        self.job_type: str = job_type
        self.attempts: int = attempts
        self.crashes: int = crashes
        self.claimed_at: float = 0.0
        self.renewed_at: float = 0.0
        self.unreadable: Exception | None = None

    @classmethod
    def of(cls, row: Any, token: UUID, holder: tuple[str, datetime], *, in_script: bool = False) -> Claim:
        """Make it from the row of a candidate that was claimed: its values are put together when somebody asks for them.

        Hundreds wait at a time, and Python's collector looks at every object that waits.

        :param in_script: its id is a UUID that came as text, and the app has no columns of its own.
        """
        attempts, expired = row[ATTEMPTS], row[EXPIRED]
        if not expired:
            attempts = min(attempts, MOST_ATTEMPTS) + 1
        claim = cls(None, None if in_script else row[JOB_ID], token, row[JOB_TYPE], attempts, row[CRASHES] + expired)
        claim._row, claim._holder, claim._in_script = row, holder, in_script
        return claim

    @property
    def job_id(self) -> Any:
        """The job's id."""
        if self._job_id is None:
            self._job_id = UUID(self._row[JOB_ID])
        return self._job_id

    @property
    def id_text(self) -> str:
        """The job's id as text."""
        return f"{self._row[JOB_ID] if self._in_script else self._job_id}"

    @property
    def process_at(self) -> datetime:
        """When it is due, which is its place in the line."""
        return self._row[PROCESS_AT]  # type: ignore[no-any-return]

    @property
    def values(self) -> dict[str, Any]:
        """The row's values by attribute, as they stand after the claim."""
        if self._values is None:
            assert self._holder is not None
            _, queue, job_type, payload, _, enqueued_at, process_at, _, last_error, *_ = self._row
            self._values = {
                "job_id": self.job_id,
                "queue": queue,
                "job_type": job_type,
                "payload": payload,
                "attempts": self.attempts,
                "enqueued_at": enqueued_at,
                "process_at": process_at,
                "claim_id": self.claim_id,
                "claimed_by": self._holder[0],
                "claimed_until": self._holder[1],
                "crashes": self.crashes,
                "last_error": last_error,
            }
        return self._values

    def lighten(self) -> None:
        """Forget what can be made again, which the columns of an app's own cannot."""
        if self._in_script:
            self._values = self._job_id = None


class Candidate:
    """A due row, locked but not yet claimed; ``crashes`` includes the one that an expired claim tells of."""

    __slots__ = ("crashes", "row")

    def __init__(self, row: Any) -> None:
        self.row: Any = row
        self.crashes: int = row[CRASHES] + row[EXPIRED]

    @property
    def process_at(self) -> datetime:
        """When the job is due, which is its place in the line."""
        return self.row[PROCESS_AT]  # type: ignore[no-any-return]

    @property
    def until(self) -> datetime:
        """Until when a claim of it that was made now would last."""
        return self.row[UNTIL]  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Held:
    """What is known of a transaction that holds a job: enough to end exactly that one from elsewhere."""

    pid: int
    transaction_id: str
    search_path: str = ""
    role: str = "none"
