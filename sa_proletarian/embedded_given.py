"""A database for a while on a server that is there already: what ``embedded`` is, for those who have a PostgreSQL.

It owns that database's beginning and end. It refuses to touch any other on the server.
"""

from __future__ import annotations

import secrets
from typing import Self

from sqlalchemy import URL, Connection, create_engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from .embedded_programs import EmbeddedPostgresError
from .errors import describe


class GivenPostgres:
    """A new, empty database on the server that ``url`` names, for as long as the ``with`` block around it.

    The role of ``url`` must be allowed to create databases. ``EmbeddedPostgresError`` says why it cannot be had; it never
    shows the password.
    """

    def __init__(self, url: str | URL) -> None:
        self._server = make_url(url)
        self._name = f"sa_proletarian_{secrets.token_hex(6)}"

    def __enter__(self) -> Self:
        self._administer(f"CREATE DATABASE {self._name}")
        return self

    def __exit__(self, *_: object) -> None:
        self._administer(f"DROP DATABASE {self._name} WITH (FORCE)")

    def url(self) -> URL:
        """Give the URL of the database."""
        return self._server.set(database=self._name)

    def _administer(self, statement: str) -> None:
        try:
            engine = create_engine(self._server, poolclass=NullPool, isolation_level="AUTOCOMMIT")
            with engine.connect() as connection:
                _require_postgresql(connection)
                connection.execute(text(statement))
        except (SQLAlchemyError, ImportError) as error:
            where = self._server.render_as_string()
            raise EmbeddedPostgresError(f"no database could be made on {where}: {describe(error)}") from None


def _require_postgresql(connection: Connection) -> None:
    if connection.dialect.name != "postgresql":
        raise EmbeddedPostgresError(f"the server must be a PostgreSQL, not {connection.dialect.name}")
