"""The database of the examples: install, remove or recreate it.

It is a PostgreSQL server of its own that runs in the background until it is removed. If EXAMPLES_DATABASE_URL names a
database, that one is used instead, and removing drops the tables of the jobs and nothing else.
"""

import argparse

from common import FOLDER, own_url, say
from sqlalchemy import create_engine

from sa_proletarian import metadata
from sa_proletarian.embedded import background_url, start_background, stop_background


def install() -> None:
    url = own_url()
    database = "the one that EXAMPLES_DATABASE_URL names"  # which may contain a password
    if url is None:
        say("Starting a PostgreSQL server for the examples")
        start_background(FOLDER)
        url = background_url(FOLDER)
        database = str(url)
    engine = create_engine(url)
    metadata.create_all(engine)  # an app leaves this to its migrations: alembic upgrade head
    engine.dispose()
    say(f"The tables are there: {tables()}")
    say(f"Database: {database}")


def remove() -> None:
    url = own_url()
    if url is None:
        stop_background(FOLDER)
        say("The PostgreSQL server of the examples and its data are gone")
        return
    engine = create_engine(url)
    metadata.drop_all(engine)
    engine.dispose()
    say(f"The tables are gone: {tables()}")


def recreate() -> None:
    remove()
    install()


def tables() -> str:
    return ", ".join(sorted(metadata.tables))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {"install": install, "remove": remove, "recreate": recreate}
    parser.add_argument("command", choices=commands)
    commands[parser.parse_args().command]()
