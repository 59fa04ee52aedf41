from pathlib import Path
from typing import assert_type

from sqlalchemy import URL

from sa_proletarian.embedded import EmbeddedPostgres, background_url, find_programs

with EmbeddedPostgres(16, tcp=True, settings={"fsync": True, "max_connections": 20}) as server:
    assert_type(server, EmbeddedPostgres)
    assert_type(server.url("app", "postgresql+asyncpg"), URL)

assert_type(background_url(Path("server")), URL)
assert_type(find_programs(18), Path)
