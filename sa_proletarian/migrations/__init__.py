"""The versioned schema, for Alembic: an operation, a plugin that writes it, and revisions that call it.

``op.proletarian_migrate(0, 2)`` in any revision brings the tables from one version to another; it needs no set-up, because
Alembic loads :data:`plugin` whenever it is imported. Where ``env.py`` names it, ``alembic revision --autogenerate`` writes
that line::

    context.configure(..., autogenerate_plugins=["alembic.autogenerate.*", "sa_proletarian.migrations"])

The rooms: ``operation`` (the arguments), ``runner`` (which steps), ``patience`` (locks), ``v1``, ``v2`` (the frozen steps,
which import no models), ``autogenerate`` with ``extras`` and ``rendering`` (the plugin's work), ``versions/`` (revisions for
those who list our folder in ``version_locations``).

Whoever has this library installed loads this module in the middle of Alembic's own import, needed or not. So it makes the
plugin before it imports Alembic, and no room but those that the plugin's comparison needs imports ``alembic.autogenerate``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alembic.runtime.plugins import Plugin

__all__ = ["plugin"]

log: logging.Logger = logging.getLogger(__name__)


class _PluginModule(ModuleType):
    """What the entry point gives to Alembic: 1.20.1 and later take a module, earlier ones iterate over modules."""

    def __iter__(self) -> Iterator[ModuleType]:
        yield self

    @staticmethod
    def setup(plugin: Plugin) -> None:
        """Add ``op.proletarian_migrate`` to Alembic, and the comparison of our tables to ``plugin``."""
        try:
            import_module(f"{__name__}.operation")
        except ImportError:  # no reason to take the command alembic from somebody who does not ask for us
            log.warning("op.proletarian_migrate cannot be had", exc_info=True)
        priority = import_module("alembic.util").DispatchPriority.LAST
        plugin.add_autogenerate_comparator(_compare, "schema", "proletarian", priority=priority)


def _compare(*arguments: Any) -> Any:
    return import_module(f"{__name__}.autogenerate").compare(*arguments)


plugin: ModuleType = _PluginModule(__name__, __doc__)
"""The entry point of group ``alembic.plugins``."""

# whichever room is imported first: Alembic loads the operation's rooms now, and not in the middle of one of them
import_module("alembic")
