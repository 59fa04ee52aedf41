"""What stands behind ``package.module:attribute``, as commands name an app's objects.

It owns the import of the app's modules, and the words for what is wrong with a reference. It refuses to know what the
objects are for.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import Any


class ReferenceMistake(Exception):
    """A reference that is not written as one, or names nothing in its module."""


class ModuleUnusable(Exception):
    """A module that is not there, or raises when it is imported; its own traceback is part of the message."""


def look_up(reference: str) -> Any:
    """Import ``package.module`` and give its ``attribute`` (dots lead further), as in ``shop.background:jobs``.

    Modules are looked for in the current directory first, as ``python -m`` does it.
    """
    module, colon, path = reference.partition(":")
    if not (colon and module and path):
        raise ReferenceMistake(f"{reference!r} is not of the form package.module:attribute")
    found = _import(module)
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise ReferenceMistake(f"{reference!r}: there is no {name!r} in {_called(found)}") from None
    return found


def _import(module: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
            raise ModuleUnusable(f"there is no module {error.name!r} in {here} or among what is installed") from error
        raise ModuleUnusable(_report(module, error)) from error
    except (Exception, SystemExit) as error:
        raise ModuleUnusable(_report(module, error)) from error


def _report(module: str, error: BaseException) -> str:
    trace = "".join(traceback.format_exception(error)).rstrip()
    return f"the module {module!r} cannot be imported:\n{trace}"


def _called(found: Any) -> str:
    return (
        f"the module {found.__name__!r}"
        if hasattr(found, "__path__") or hasattr(found, "__spec__")
        else f"a {type(found).__name__}"
    )
