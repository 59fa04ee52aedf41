"""A shop on Litestar and advanced-alchemy. Lines marked "added" came with the jobs; the rest of them is in jobs.py.

``litestar database init migrations``, ``make-migrations`` and ``upgrade`` make the tables.
"""

import asyncio  # added
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager  # added
from dataclasses import dataclass
from uuid import UUID

import uvicorn
from database import alchemy
from jobs import jobs, worker, write_receipt  # added
from litestar import Litestar, post
from litestar.exceptions import ClientException
from litestar.plugins.sqlalchemy import SQLAlchemyPlugin
from models import Order
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

STOCK = 100
WORKER_INSIDE = os.environ.get("WORKER") != "outside"  # added


@dataclass
class NewOrder:
    number: str
    quantity: int


@post("/orders")
async def place_order(data: NewOrder, db_session: AsyncSession) -> dict[str, UUID]:
    order = Order(number=data.number, quantity=data.quantity)
    db_session.add(order)
    try:
        await db_session.flush()
    except IntegrityError:
        raise ClientException("there is such an order", status_code=409) from None
    jobs.enqueue(db_session, write_receipt, {"order_id": order.id})  # added: without await, there is no I/O in it
    if order.quantity > STOCK:
        raise ClientException("there is not that much tea", status_code=409)  # there is no job either
    return {"id": order.id}


@asynccontextmanager  # added
async def work(app: Litestar) -> AsyncIterator[None]:  # added
    if WORKER_INSIDE:  # added
        worker.start()  # added
    yield  # added
    await asyncio.to_thread(worker.stop)  # added: does nothing if it does not run


app = Litestar([place_order], plugins=[SQLAlchemyPlugin(config=alchemy)], lifespan=[work])  # added

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
