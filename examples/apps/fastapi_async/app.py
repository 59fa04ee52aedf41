"""A shop on FastAPI and ``AsyncSession``. Lines marked "added" came with the jobs; the rest of them is in jobs.py."""

import asyncio  # added
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import uvicorn
from fastapi import FastAPI, HTTPException
from jobs import jobs, worker, write_receipt  # added
from models import Order, Session, engine
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError

STOCK = 100
WORKER_INSIDE = os.environ.get("WORKER") != "outside"  # added


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    if WORKER_INSIDE:  # added
        worker.start()  # added
    yield
    await asyncio.to_thread(worker.stop)  # added: does nothing if it does not run
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


class NewOrder(BaseModel):
    number: str
    quantity: int


@app.post("/orders", status_code=201)
async def place_order(new: NewOrder) -> dict[str, UUID]:
    order = Order(id=uuid4(), number=new.number, quantity=new.quantity)
    try:
        async with Session.begin() as session:
            session.add(order)
            jobs.enqueue(session, write_receipt, {"order_id": order.id})  # added: without await, there is no I/O in it
            if new.quantity > STOCK:
                raise HTTPException(409, "there is not that much tea")  # rolls back, and there is no job either
    except IntegrityError:  # from the commit; there is no job either
        raise HTTPException(409, "there is such an order") from None
    return {"id": order.id}


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
