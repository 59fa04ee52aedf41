"""Apply the library's own revisions to the database of SA_PROLETARIAN_DATABASE_URL, or to this clone's own server."""

from __future__ import annotations

import os
from pathlib import Path

from alembic import context
from alembic.util import CommandError
from sqlalchemy import URL, Connection, create_engine, make_url
from sqlalchemy.pool import NullPool

from sa_proletarian.embedded import EmbeddedPostgresError, background_url, start_background
from sa_proletarian.models import metadata

SERVER = Path(__file__).parent.parent / ".postgresql"


def database_url() -> URL:
    """Return the URL that the environment names, or that of the background server, which this starts if need be."""
    if given := os.environ.get("SA_PROLETARIAN_DATABASE_URL"):
        return make_url(given)
    try:
        start_background(SERVER)
    except EmbeddedPostgresError as missing:
        raise CommandError(f"Set SA_PROLETARIAN_DATABASE_URL to a database of yours. {missing}") from missing
    return background_url(SERVER)


def migrate(connection: Connection | None = None) -> None:
    """Run the revisions on a connection, or without one write their SQL to the standard output."""
    context.configure(
        connection=connection,
        dialect_name=None if connection else "postgresql",
        dialect_opts={"paramstyle": "named"},
        literal_binds=connection is None,
        target_metadata=metadata,
        version_table="proletarian_version",
    )
    with context.begin_transaction():
        context.run_migrations()


def migrate_online() -> None:
    """Run the revisions on the database."""
    engine = create_engine(database_url(), poolclass=NullPool)
    with engine.connect() as connection:
        migrate(connection)


if context.is_offline_mode():
    migrate()
else:
    migrate_online()
