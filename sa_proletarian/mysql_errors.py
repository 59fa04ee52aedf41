"""What the error numbers of MariaDB and MySQL mean, in PostgreSQL's SQLSTATEs, which the rest of the house reads.

It owns the one list, the notes that tell a savepoint lost to a deadlock from one that the handler has ended, and the
messages without the values that these servers quote in them. It refuses to read their SQLSTATEs: most errors have ``HY000``.
"""

from __future__ import annotations

import re
from typing import Any

_STATES = {
    "40P01": (1213,),
    "40001": (1020, 1180),
    "55P03": (1205,),
    "57014": (1317, 1969, 3024),
    "57P01": (1053, 1927, 2006, 2013, 2014, 2045, 2055, 3169, 4031),
    "57P03": (2002, 2003),
    "25006": (1290, 1792, 1836),
    "53000": (1021, 1040, 1041, 1114, 1203, 1206, 1226),
    "23000": (1048, 1062, 1216, 1217, 1364, 1451, 1452, 1557, 1586, 1761, 1762, 3819, 4025),
    "42P01": (1049, 1054, 1146),
    "3B001": (1305,),
}
_BY_NUMBER = {number: state for state, numbers in _STATES.items() for number in numbers}

DEADLOCK, LOCK_WAIT, NO_SAVEPOINT, KILLED = 1213, 1205, 1305, 1927
_DRIVERS = ("pymysql", "asyncmy", "aiomysql", "MySQLdb", "mysql", "mariadb")
_UNDONE = "sa_proletarian_undone"

# what these have between quotation marks are names of columns, tables and users; elsewhere it may be a row's value
_NAMING = {1044, 1045, 1048, 1049, 1050, 1051, 1054, 1142, 1143, 1146, 1264, 1305, 1364, 1406, 1451, 1452, 3819, 4025}
_QUOTED = re.compile("'.*'", re.DOTALL)
_OF_A_KEY = re.compile("'.*'(?= for key '[^']*'$)", re.DOTALL)


def state_of(error: Any) -> str | None:
    """Give the SQLSTATE that PostgreSQL would have for this; ``None`` for what is no error of these servers' drivers."""
    number = number_of(error)
    if number == 0 and type(error).__name__ == "InterfaceError":  # PyMySQL's word for a connection that is closed
        return "57P01"
    return None if number is None else _BY_NUMBER.get(number, "HY000")


def number_of(error: Any) -> int | None:
    """Give the number of a driver's error."""
    if not any(kind.__module__.partition(".")[0] in _DRIVERS for kind in type(error).__mro__):
        return None
    number: Any = error.args[0] if error.args else None
    return number if isinstance(number, int) else None


def without_values(error: Any) -> str | None:
    """Give the message of a driver's error without the values that it quotes; ``None`` for what is no such error."""
    number = number_of(error)
    if number is None:
        return None
    message = " ".join(str(part) for part in error.args[1:])
    if number in _NAMING:
        return message
    return (_OF_A_KEY if _OF_A_KEY.search(message) else _QUOTED).sub("'…'", message)


def note(context: Any) -> None:
    """Note that a deadlock has ended the transaction, and say so of the savepoint that is found missing later.

    A listener for an engine's ``handle_error``. A deadlock undoes the whole transaction on these servers, also where the
    handler swallows the error; the next thing it hears is that a savepoint does not exist.
    """
    number = number_of(context.original_exception)
    if context.connection is None or number is None:
        return
    if number == KILLED:
        context.is_disconnect = True
    elif number in (DEADLOCK, LOCK_WAIT):
        context.connection.info[_UNDONE] = context.original_exception
    elif number == NO_SAVEPOINT:
        context.original_exception.__cause__ = context.connection.info.get(_UNDONE)


def forget(connection: Any) -> None:
    """Begin anew: what was noted on this connection concerned another transaction."""
    connection.info.pop(_UNDONE, None)


def noted(connection: Any) -> BaseException | None:
    """Give the error that may have ended the transaction, where there was one."""
    error: BaseException | None = connection.info.get(_UNDONE)
    return error


def undone_by(error: BaseException) -> BaseException | None:
    """Give the error that ended the transaction whose savepoint is missing, where that is known."""
    original = getattr(error, "orig", None) or error
    return original.__cause__ if number_of(original) == NO_SAVEPOINT else None
