"""A shop on FastAPI and ``Session``. Lines marked "added" came with the jobs; the rest of them is in jobs.py."""

import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, nullcontext  # added
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from jobs import jobs, worker, write_receipt  # added
from models import Order, Session
from pydantic import BaseModel
from sqlalchemy import orm
from sqlalchemy.exc import IntegrityError

STOCK = 100
WORKER_INSIDE = os.environ.get("WORKER") != "outside"  # added


@asynccontextmanager  # added
async def lifespan(app: FastAPI) -> AsyncIterator[None]:  # added
    with worker if WORKER_INSIDE else nullcontext():  # added
        yield  # added


app = FastAPI(lifespan=lifespan)  # added


def begin() -> Iterator[orm.Session]:
    with Session.begin() as session:
        yield session


# FastAPI commits before it answers only in this scope: else a 201 would be sent before a commit that fails
Transaction = Annotated[orm.Session, Depends(begin, scope="function")]


class NewOrder(BaseModel):
    number: str
    quantity: int


@app.post("/orders", status_code=201)
def place_order(new: NewOrder, session: Transaction) -> dict[str, int]:
    order = Order(number=new.number, quantity=new.quantity)
    session.add(order)
    session.flush()  # the database makes the id
    jobs.enqueue(session, write_receipt, {"order_id": order.id})  # added
    if order.quantity > STOCK:
        raise HTTPException(409, "there is not that much tea")  # rolls back, and there is no job either
    return {"id": order.id}


@app.exception_handler(IntegrityError)
def answer_taken(request: Request, error: IntegrityError) -> JSONResponse:
    return JSONResponse({"detail": "there is such an order"}, 409)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
