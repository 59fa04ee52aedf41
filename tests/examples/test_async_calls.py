"""A hundred calls of an API at once, by one worker process: the API answers none of them before all have arrived."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from sqlalchemy import text

ITEMS = 100
BUSY = 7
"""This item's first call is refused."""
GONE = 13


class Api(BaseHTTPRequestHandler):
    def do_GET(self):
        item = int(self.path.rsplit("/", 1)[1])
        if not self.server.everybody_is_here.is_set():
            self.server.barrier.wait(30)
            self.server.everybody_is_here.set()
        first = item not in self.server.seen
        self.server.seen.add(item)
        status = 404 if item == GONE else 503 if item == BUSY and first else 200
        body = json.dumps({"cents": item * 100}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 2 * ITEMS
    daemon_threads = True


@pytest.fixture
def api():
    server = Server(("127.0.0.1", 0), Api)
    server.barrier = threading.Barrier(ITEMS)
    server.everybody_is_here = threading.Event()
    server.seen = set()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.barrier.abort()
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_hundred_calls_wait_side_by_side_and_each_price_arrives_once(start, environment, database_url, api, engine):
    environment["DATABASE_URL"] = database_url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    environment["PRICES_URL"] = f"http://127.0.0.1:{api.server_port}/prices"
    enqueue = start("async_calls/enqueue.py", str(ITEMS))
    enqueue.wait_for("100 jobs enqueued")
    enqueue.end()
    worker = start("async_calls/worker.py")
    worker.wait_for("retrying .*attempt=1")
    worker.wait_for("job_finished .*attempt=2")
    worker.terminate()
    worker.end()
    assert worker.exit_code == 0
    with engine.connect() as connection:
        prices = connection.execute(text("SELECT item, cents FROM price ORDER BY item")).all()
        ended = connection.execute(text("SELECT status, count(*) FROM proletarian_archived_job GROUP BY 1 ORDER BY 1")).all()
        left = connection.scalar(text("SELECT count(*) FROM proletarian_job"))
    assert prices == [(item, item * 100) for item in range(1, ITEMS + 1) if item != GONE]
    assert ended == [("cancelled", 1), ("success", ITEMS - 1)]
    assert left == 0
