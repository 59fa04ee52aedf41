"""The enqueuer: keeps a queue filled, one transaction for one job or several, and writes down how each ended.

That is ok, fail, or unknown.

In the same transaction it writes a business row; the two must be there together or not at all.
"""

from __future__ import annotations

import random
import threading
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sa_proletarian import Proletarian

from .ledger import Ledger
from .waiting import until

BUSINESS = text("INSERT INTO business (job_id) VALUES (:job_id)")
LONG_ENOUGH = 20.0
LEFT = text("SELECT count(*) FROM proletarian_job")

USUAL = (
    (66, "write", {}),
    (8, "idles", {}),
    (4, "reads", {}),
    (5, "write", {"fails": 1}),
    (2, "idles", {"fails": 1}),
    (2, "commits", {"fails": 2}),
    (4, "commits", {}),
    (3, "rolls_back", {}),
    (3, "closes", {}),
    (3, "swallows", {}),
)
"""What jobs do, with weights: most behave, some fail at first, some do to their session what handlers do."""


class Enqueuer:
    """Enqueues through one engine, from one thread; its choices come from one seed."""

    def __init__(self, engine: Engine, ledger: Ledger, seed: int, mix: Any = USUAL, *, most_ms: float = 10) -> None:
        self._engine = engine
        self._ledger = ledger
        self._chance = random.Random(seed)
        self._mix = mix
        self._most_ms = most_ms
        self._jobs = Proletarian()
        self.count = 0

    def payload(self) -> dict[str, Any]:
        _, does, further = self._chance.choices(self._mix, [weight for weight, *_ in self._mix])[0]
        return {"does": does, "ms": round(self._chance.uniform(0, self._most_ms), 1), **further}

    def put(self, payload: dict[str, Any] | None = None, *, until_certain: bool = False, **options: Any) -> str:
        """Enqueue one job; where it stays unknown whether that was committed, perhaps again under the same id."""
        [job_id] = self._put([self.payload() if payload is None else payload], until_certain=until_certain, **options)
        return job_id

    def put_together(self, count: int, **options: Any) -> list[str]:
        """Enqueue so many jobs in one transaction."""
        return self._put([self.payload() for _ in range(count)], **options)

    def _put(self, payloads: list[dict[str, Any]], *, until_certain: bool = False, **options: Any) -> list[str]:
        batch = {str(uuid4()): payload for payload in payloads}
        outcome = self._once(batch, options)
        tries = 1

        def is_certain() -> bool:
            nonlocal outcome, tries
            outcome, tries = self._once(batch, options, again=True), tries + 1
            return outcome != "unknown"

        if until_certain and outcome == "unknown":
            until(is_certain, LONG_ENOUGH)
        for job_id, payload in batch.items():
            self._ledger.write(what="enqueued", job=job_id, payload=payload, outcome=outcome, tries=tries)
        self.count += len(batch)
        return [*batch]

    def _once(self, batch: dict[str, dict[str, Any]], options: dict[str, Any], *, again: bool = False) -> str:
        """Try it; ``again``: somewhere there may be a first one, and then a refusal as a double means that it is there."""
        committing = False
        try:
            with Session(self._engine) as session:
                session.execute(BUSINESS, [{"job_id": job_id} for job_id in batch])
                for job_id, payload in batch.items():
                    self._jobs.enqueue(session, "job", payload, job_id=UUID(job_id), **options)
                session.flush()
                committing = True
                session.commit()
        except IntegrityError:
            if again:
                return "ok"
            raise
        except Exception:
            return "unknown" if committing or again else "fail"
        return "ok"

    def keep_filled(self, stop: threading.Event, target: int, *, together: int = 1, **options: Any) -> None:
        """Enqueue until told to stop, and wait while about ``target`` jobs are there.

        :param together: so many in each transaction.
        """
        while not stop.is_set():
            try:
                with self._engine.connect() as connection:
                    missing = target - (connection.scalar(LEFT) or 0)
            except Exception:
                missing = 1  # try it, and write down what comes of it
            for _ in range(min(missing, 50 * together) // together):
                self.put_together(together, **options)
                if stop.is_set():
                    return
            stop.wait(0.02 if missing >= together else 0.05)
