"""The web app: POST /signup writes the user and enqueues the confirmation mail, in one transaction."""

import os
from typing import Annotated

import uvicorn
from fastapi import FastAPI, HTTPException
from jobs import jobs, send_confirmation
from models import User
from pydantic import BaseModel, StringConstraints
from sqlalchemy import create_engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import sessionmaker

from sa_proletarian import uuid7

Address = StringConstraints(to_lower=True, max_length=254, pattern=r"^[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+$")
Name = StringConstraints(strip_whitespace=True, max_length=100, pattern=r"^\P{Cc}+$")
THROWAWAY = ("mailinator.example", "trashmail.example")

engine = create_engine(os.environ["DATABASE_URL"])
Session = sessionmaker(engine)
app = FastAPI()


class Signup(BaseModel):
    email: Annotated[str, Address]
    name: Annotated[str, Name]


@app.post("/signup", status_code=201)
def signup(form: Signup) -> dict[str, str]:
    user = User(id=uuid7(), email=form.email, name=form.name)
    try:
        with Session.begin() as session:
            session.add(user)
            jobs.enqueue(session, send_confirmation, {"user_id": user.id})
            refuse_throwaway(user)  # the job is enqueued already; raising takes it back, together with the user
    except IntegrityError:  # the address is taken, which the flush at the end of the block has found out
        raise HTTPException(409, "there is an account with this address") from None
    return {"status": "a mail is on its way"}


def refuse_throwaway(user: User) -> None:
    if user.email.endswith(THROWAWAY):
        raise HTTPException(422, "please give an address that you will keep")


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
