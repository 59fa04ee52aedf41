"""What happens in the background: the confirmation mail is sent."""

import os
import smtplib
from datetime import timedelta
from email.message import EmailMessage
from uuid import UUID

from models import ArchivedJob, Job, User
from sqlalchemy import func
from sqlalchemy.orm import Session

from sa_proletarian import Cancel, Proletarian, Retry

SMTP_HOST = os.environ.get("SMTP_HOST", "localhost")
SMTP_PORT = int(os.environ.get("SMTP_PORT", "8025"))

jobs = Proletarian(Job, ArchivedJob)

# A mail server that is busy or away for a while is nothing unusual: try for about an hour.
PATIENTLY = Retry(retries=8, delays=[timedelta(seconds=1), timedelta(seconds=30), timedelta(minutes=10)])


@jobs.handler("send_confirmation", retry=PATIENTLY)
def send_confirmation(session: Session, job: Job) -> None:
    user = session.get(User, UUID(job.payload["user_id"]))
    if user is None:
        raise Cancel("the user is gone")
    send(confirmation(user, job))
    user.confirmation_sent_at = func.now()  # committed together with the end of the job, or not at all


def confirmation(user: User, job: Job) -> EmailMessage:
    message = EmailMessage()
    message["From"] = "signup@example.org"
    message["To"] = user.email
    message["Subject"] = "Please confirm your address"
    # A process can die between the mail and the commit; the job then runs again. Only the receiver can tell that both
    # mails are one, by an id that stays the same: the job's.
    message["Message-ID"] = f"<{job.job_id}@example.org>"
    message.set_content(f"Dear {user.name},\n\nreply to this mail, and we know that the address is yours.\n")
    return message


def send(message: EmailMessage) -> None:
    with smtplib.SMTP(SMTP_HOST, SMTP_PORT, timeout=10) as server:
        server.send_message(message)
