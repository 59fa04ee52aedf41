"""The signup app over HTTP, with a worker process and a mail server: whoever is kept gets one mail, nobody else any."""

from __future__ import annotations

import email
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from email.policy import default as modern
from typing import Any
from uuid import UUID

import httpx
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope
from aiosmtpd.smtp import Session as SMTPSession
from sqlalchemy import Engine, text

SENT = 201
TAKEN = 409
REFUSED = 422


class Mailbox:
    """Takes the mails that arrive, after it has turned every fifth away once; a test can wait for them."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.turned_away: set[str] = set()
        self._changed = threading.Condition()

    async def handle_DATA(self, server: SMTP, session: SMTPSession, envelope: Envelope) -> str:  # noqa: N802
        mail = email.message_from_bytes(envelope.content, _class=EmailMessage, policy=modern)
        with self._changed:
            return self._answer(mail)

    def wait_for(self, count: int) -> None:
        with self._changed:
            arrived = self._changed.wait_for(lambda: len(self.mails) >= count, timeout=60)
        assert arrived, f"{len(self.mails)} mails of {count}"

    def _answer(self, mail: EmailMessage) -> str:
        if mail["Message-ID"] not in self.turned_away and len(self.turned_away) * 5 < len(self.mails):
            self.turned_away.add(mail["Message-ID"])
            return "451 busy, try again later"
        self.mails.append(mail)
        self._changed.notify_all()
        return "250 OK"


@pytest.fixture
def mailbox(environment: dict[str, str]) -> Iterator[Mailbox]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    controller = Controller(Mailbox(), hostname="127.0.0.1", port=port)
    controller.start()
    environment |= {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(port)}
    yield controller.handler
    controller.stop()


@pytest.fixture
def start_signup(start: Callable[..., Any], environment: dict[str, str], database_url: Any) -> Callable[..., Any]:
    """Return a function that starts a script of the example, its tables being there."""
    environment |= {"DATABASE_URL": database_url.render_as_string(hide_password=False), "PORT": "0"}
    tables = start("signup/models.py")
    tables.end()
    assert tables.exit_code == 0, tables.text
    return lambda name: start(f"signup/{name}")


@pytest.fixture
def worker(start_signup: Callable[..., Any], mailbox: Mailbox) -> Any:
    return start_signup("worker.py")


@pytest.fixture
def client(start_signup: Callable[..., Any]) -> Iterator[httpx.Client]:
    address = start_signup("app.py").wait_for(r"running on (http://\S+)")[1]
    with httpx.Client(base_url=address, timeout=60) as client:
        yield client


def signups() -> list[tuple[str, str]]:
    """Give 200 signups: 140 of new people, 20 of whom ask twice at once, 20 with throwaway addresses, 20 malformed."""
    names = ["Ada", "Zoë", "Łukasz", "李小龍", "O'Brien; DROP TABLE users"]
    people = [(f"Person{number}+news@example.org", names[number % len(names)]) for number in range(140)]
    throwaway = [(f"person{number}@trashmail.example", "Nobody") for number in range(20)]
    malformed = [("no address", "Nobody"), ("a@b\n", "Nobody"), ("nul@example.org", "\x00"), ("", "")] * 5
    twice = [entry for person in people[:20] for entry in (person, person)]
    rest = [entry for row in zip(people[20:40], throwaway, malformed, strict=True) for entry in row]
    return [*twice, *rest, *people[40:]]


def sign_up_all(client: httpx.Client) -> list[tuple[str, int]]:
    """Send all signups, eight at a time; give the addresses and the answers."""

    def sign_up(entry: tuple[str, str]) -> tuple[str, int]:
        address, name = entry
        return address.lower(), client.post("/signup", json={"email": address, "name": name}).status_code

    with ThreadPoolExecutor(8) as senders:
        return list(senders.map(sign_up, signups()))


def test_whoever_is_kept_gets_one_mail_and_nobody_else_gets_any(
    client: httpx.Client, worker: Any, mailbox: Mailbox, engine: Engine
) -> None:
    answers = sign_up_all(client)
    kept = [address for address, status in answers if status == SENT]
    mailbox.wait_for(len(kept))
    worker.press_ctrl_c()
    worker.end()

    assert worker.exit_code == 0, worker.text
    assert Counter(status for _, status in answers) == {SENT: 140, TAKEN: 20, REFUSED: 40}
    with engine.connect() as connection:
        users = connection.execute(text("SELECT email, confirmation_sent_at IS NOT NULL FROM users")).all()
        archive = connection.execute(text("SELECT job_id, status, attempts FROM proletarian_archived_job")).all()
        assert connection.scalar(text("SELECT count(*) FROM proletarian_job")) == 0
    assert sorted(tuple(user) for user in users) == sorted((address, True) for address in kept)
    assert sorted(mail["To"] for mail in mailbox.mails) == sorted(kept)
    assert Counter(job_id(mail["Message-ID"]) for mail in mailbox.mails) == {row.job_id: 1 for row in archive}
    assert {row.status for row in archive} == {"success"}
    again = {row.job_id for row in archive if row.attempts == 2}
    assert again == {job_id(message_id) for message_id in mailbox.turned_away} != set()


def test_the_mail_is_readable_in_any_script(client: httpx.Client, worker: Any, mailbox: Mailbox) -> None:
    client.post("/signup", json={"email": "xiaolong@example.org", "name": "李小龍"}).raise_for_status()
    mailbox.wait_for(1)
    [mail] = mailbox.mails
    assert mail["Subject"] == "Please confirm your address"
    assert mail.get_content().splitlines()[0] == "Dear 李小龍,"


def test_a_mail_to_somebody_who_has_gone_is_cancelled(
    client: httpx.Client, start_signup: Callable[..., Any], mailbox: Mailbox, engine: Engine
) -> None:
    client.post("/signup", json={"email": "ada@example.org", "name": "Ada"}).raise_for_status()
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM users"))
    worker = start_signup("worker.py")
    worker.wait_for("job_cancelled .*reason='the user is gone'")
    worker.press_ctrl_c()
    worker.end()
    with engine.connect() as connection:
        assert connection.scalars(text("SELECT status FROM proletarian_archived_job")).all() == ["cancelled"]
    assert mailbox.mails == []


def job_id(message_id: str) -> UUID:
    found = re.fullmatch(r"<(.+)@example\.org>", message_id)
    assert found is not None
    return UUID(found[1])
