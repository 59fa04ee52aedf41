"""Transit as another Python library writes and reads it."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from transit import reader, writer
from transit import transit_types as types

from sa_proletarian.clojure import Keyword, Symbol, TaggedValue, TransitSerializer

transit = TransitSerializer()

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    texts,
    st.sampled_from(["~", "^", "^ ", "~#set", "^0", "name", "other-name"]),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.uuids(),
    st.sampled_from([Keyword("name"), Keyword("my.app/name"), Keyword("a"), Symbol("name"), Symbol("my/name")]),
)
keys = st.recursive(scalars, lambda inner: st.lists(inner, max_size=2).map(tuple), max_leaves=3)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4),
        st.frozensets(keys, max_size=3),
        st.builds(TaggedValue, st.just("point"), inner),
    ),
    max_leaves=10,
)


@given(values)
def test_both_read_what_the_other_writes(value):
    assert ours(theirs_read(transit.encode(value))) == value
    assert transit.decode(theirs_written(theirs(value))) == value


def theirs_read(text):
    return reader.Reader("json").read(io.StringIO(text))


def theirs_written(value):
    stream = io.StringIO()
    writer.Writer(stream, "json").write(value)
    return stream.getvalue()


def theirs(value):
    match value:
        case Keyword():
            return types.Keyword(str(value))
        case Symbol():
            return types.Symbol(str(value))
        case list() | tuple() | frozenset():
            return type(value)(map(theirs, value))
        case dict():
            return types.frozendict({theirs(key): theirs(item) for key, item in value.items()})
        case TaggedValue():
            return types.TaggedValue(value.tag, theirs(value.rep))
        case _:
            return value


def ours(value):  # noqa: PLR0911 - one clause for each type
    match value:
        case types.Keyword():
            return Keyword(value.str)
        case types.Symbol():
            return Symbol(value.str)
        case types.Boolean():
            return bool(value)
        case tuple():
            return [ours(item) for item in value]
        case frozenset():
            return frozenset(tupled(ours(item)) for item in value)
        case types.frozendict():
            return {tupled(ours(key)): ours(item) for key, item in value.items()}
        case types.TaggedValue():
            return TaggedValue(value.tag, ours(value.rep))
        case _:
            return value


def tupled(value):
    return tuple(map(tupled, value)) if isinstance(value, list) else value
