"""The tables of a trial, beside the library's, on any of the databases; and what is said otherwise to each."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import BigInteger, Column, Connection, Integer, MetaData, String, Table, insert

from sa_proletarian.dialects import TIMESTAMP, clock_now

own = MetaData()
business = Table("business", own, Column("job_id", String(36), primary_key=True))
effect = Table(
    "effect",
    own,
    Column("job_id", String(36), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("at", TIMESTAMP, nullable=False, server_default=clock_now()),
)
counter = Table(
    "counter",
    own,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("value", BigInteger, nullable=False),
)


def make(connection: Connection) -> None:
    own.create_all(connection)
    connection.execute(insert(counter), [{"id": number, "value": 0} for number in range(1, 21)])


@dataclass(frozen=True)
class Spelling:
    """How deeds are said to one database."""

    fail: str
    sleep: str


SPELLINGS = {
    "postgresql": Spelling("SELECT 1/0", "SELECT pg_sleep(:s)"),
    "mariadb": Spelling("SELECT no_such_column", "SELECT SLEEP(:s)"),
}
SPELLINGS["mysql"] = SPELLINGS["mariadb"]
