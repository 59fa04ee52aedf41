"""Several async workers on one event loop, run and stopped as one.

It owns the signals while they run; a single worker's ``run`` takes them itself. It refuses to share anything else.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from . import clock, events
from .async_worker import AsyncWorker
from .signals import ECHO


async def run(workers: Sequence[AsyncWorker]) -> bool:
    """Start ``workers``, wait for SIGTERM or SIGINT, stop them all; give whether each settled everything in time.

    A second signal releases at once what still runs.
    """
    if len(workers) == 1:
        return await workers[0].run()
    heard: asyncio.Queue[int] = asyncio.Queue()
    with _signals_into(heard):
        for worker in workers:
            await worker.start()
        first = await heard.get()
        for worker in workers:
            worker._emit(events.WorkerInterrupted, signal=signal.Signals(first).name)
        hurry = asyncio.create_task(_hurry(workers, heard, first))
        try:
            return all(await asyncio.gather(*(worker.stop() for worker in workers)))
        finally:
            hurry.cancel()


async def _hurry(workers: Sequence[AsyncWorker], heard: asyncio.Queue[int], first: int) -> None:
    """Wait for a second signal; one of the same kind within half a second is an echo of the first."""
    at = clock.monotonic()
    while (number := await heard.get()) == first and clock.monotonic() - at < ECHO:
        at = clock.monotonic()
    for worker in workers:
        if worker.running:
            worker._emit(events.InterruptedWhileShuttingDown, signal=signal.Signals(number).name)
    await asyncio.gather(*(worker.stop(timedelta(0)) for worker in workers if worker.running))


@contextmanager
def _signals_into(heard: asyncio.Queue[int]) -> Generator[None, None, None]:
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        loop.add_signal_handler(number, heard.put_nowait, number)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
