"""How the shop reaches its database: nothing in here came with the jobs."""

import os

from litestar.plugins.sqlalchemy import AlembicAsyncConfig, SQLAlchemyAsyncConfig

alchemy = SQLAlchemyAsyncConfig(
    connection_string=os.environ["DATABASE_URL"],
    before_send_handler="autocommit",  # commits before an answer of 2xx, rolls back before any other
    alembic_config=AlembicAsyncConfig(script_location="migrations"),
)
