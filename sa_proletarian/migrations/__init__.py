"""The versioned schema of the default models: Alembic revisions, in ``versions/``.

It owns what has been released and never changes again. It refuses to import the models, which are free to move on; a
test holds the two together. Apps with models of their own do not need it: their own ``alembic revision --autogenerate``
writes what their models say.
"""
