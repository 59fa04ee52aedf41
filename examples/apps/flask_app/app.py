"""A shop on Flask, Flask-SQLAlchemy and Flask-Migrate. Lines marked "added" came with the jobs.

``flask db init``, ``flask db migrate`` and ``flask db upgrade`` make the tables.
"""

import logging
import os
import signal  # added
from contextlib import nullcontext  # added
from types import FrameType

from flask import Flask, request
from flask_migrate import Migrate
from jobs import jobs, make_worker, write_receipt  # added
from models import Order, db
from sqlalchemy.exc import IntegrityError
from werkzeug.exceptions import Conflict

STOCK = 100

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
db.init_app(app)
Migrate(app, db, autogenerate_plugins=["alembic.autogenerate.*", "sa_proletarian.migrations"])  # added: may be left out


@app.post("/orders")
def place_order() -> tuple[dict[str, int], int]:
    order = Order(number=request.json["number"], quantity=request.json["quantity"])
    db.session.add(order)
    db.session.flush()  # the database makes the id
    jobs.enqueue(db.session, write_receipt, {"order_id": order.id})  # added
    if order.quantity > STOCK:
        raise Conflict("there is not that much tea")  # the session ends with the request; there is no job either
    db.session.commit()
    return {"id": order.id}, 201


@app.errorhandler(IntegrityError)
def answer_taken(error: IntegrityError) -> Conflict:
    return Conflict("there is such an order")


@app.cli.command("work")  # added
def work() -> None:  # added
    """Run the jobs, in a process of its own."""
    logging.basicConfig(level=logging.INFO)
    make_worker(app).run()  # added


def end(number: int, frame: FrameType | None) -> None:  # added
    raise SystemExit(0)  # added: so that the worker is stopped; the development server ends at once on SIGTERM


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    signal.signal(signal.SIGTERM, end)  # added
    with make_worker(app) if os.environ.get("WORKER") != "outside" else nullcontext():  # added
        app.run(port=int(os.environ.get("PORT", "8000")))
