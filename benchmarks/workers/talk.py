"""How the harness talks to a worker process: words on standard input and output, one a line.

    ready                  the process has connected and made its tables; the harness may go on
    fill 20000   filled    enqueue so many jobs, in bulk
    go           going     begin to work
    stop         {…}       end, and say when the first handler was called and how much processor time it took since "go"

Times are of the monotonic clock, which all processes of a machine share. What is measured is the same for every worker: from
the first handler's first line until the harness finds nothing left to do in the tables.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import threading
import time
import traceback
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol

with suppress(ImportError):
    import uvloop

BULK = 1000


class Subject(Protocol):
    """What a kind of worker has to bring."""

    def fill(self, count: int) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...


class FirstCall:
    """When a handler was first called; cheap enough for a handler that does nothing else.

    :ivar calls: when the handler of each job was called, by the job's number, for handlers that note that.
    """

    def __init__(self) -> None:
        self.at: float | None = None
        self.calls: dict[int, float] = {}

    def note(self) -> None:
        if self.at is None:
            self.at = time.monotonic()


class LoopThread:
    """An event loop in a thread of its own, so that the main thread can listen to the harness; ``fast``, uvloop's."""

    def __init__(self, *, fast: bool = False) -> None:
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop() if fast else asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def begin(self, task: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Begin ``task``; should it fail while nobody waits for it, this process ends with its error."""
        begun = asyncio.run_coroutine_threadsafe(task, self.loop)
        begun.add_done_callback(_end_if_failed)
        return begun

    def run(self, task: Coroutine[Any, Any, Any]) -> Any:
        return self.begin(task).result()


def _end_if_failed(begun: Future[Any]) -> None:
    if not begun.cancelled() and (error := begun.exception()) is not None:
        traceback.print_exception(error)
        os._exit(1)


def serve(subject: Subject, first: FirstCall) -> None:
    """Do what the harness says, until it says stop or is gone."""
    _say("ready")
    since = 0.0
    for line in sys.stdin:
        match line.split():
            case ["fill", count]:
                subject.fill(int(count))
                _say("filled")
            case ["go"]:
                since = _processor_time()
                subject.start()
                _say("going")
            case ["stop"]:
                spent = _processor_time() - since
                subject.stop()
                _say(json.dumps({"first": first.at, "cpu": spent, "calls": first.calls}))
                return


def _processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _say(word: str) -> None:
    print(word, flush=True)
