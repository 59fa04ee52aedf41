"""Transit: every type both ways, the cache, and what is refused in the call."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, StrEnum
from fractions import Fraction
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sa_proletarian.clojure import URI, Char, FrozenMap, Keyword, Symbol, TaggedValue, TransitSerializer
from sa_proletarian.clojure.caching import code, index

transit = TransitSerializer()
INSTANT = datetime(2026, 2, 3, 4, 5, 6, 789_000, tzinfo=UTC)

# each text as transit-clj 1.0 with Proletarian's handlers writes the value
BOTH_WAYS = [
    ([None, True, False, "text", 1, -1, 1.5], '[null,true,false,"text",1,-1,1.5]'),
    (["", "~tilde", "^caret", "`grave", "a~^`"], '["","~~tilde","~^caret","~`grave","a~^`"]'),
    (
        [2**53 - 1, 1 - 2**53, 2**53, -(2**53)],
        '[9007199254740991,-9007199254740991,"~i9007199254740992","~i-9007199254740992"]',
    ),
    ([2**63 - 1, 2**63, -(2**63) - 1], '["~i9223372036854775807","~n9223372036854775808","~n-9223372036854775809"]'),
    ([Decimal("0.10"), Decimal("1E+3"), Fraction(1, 3)], '["~f0.10","~f1E+3",["~#ratio",["~n1","~n3"]]]'),
    ([math.inf, -math.inf], '["~zINF","~z-INF"]'),
    ([Keyword("k"), Keyword("my.app/k"), Symbol("s"), Symbol("a/s")], '["~:k","~:my.app/k","~$s","~$a/s"]'),
    ([Char("c"), Char("~"), URI("http://x.no/~a")], '["~cc","~c~","~rhttp://x.no/~a"]'),
    ([b"\x01\x02\x03", b""], '["~bAQID","~b"]'),
    ([UUID("531a379e-31bb-4ce1-8690-158dceb64be6")], '["~u531a379e-31bb-4ce1-8690-158dceb64be6"]'),
    ([INSTANT, datetime(1969, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)], '["~m1770091506789","~m-1"]'),
    ([frozenset({1}), frozenset()], '[["~#set",[1]],["^0",[]]]'),
    ({}, '["^ "]'),
    ({"a": 1, Keyword("b"): [2]}, '["^ ","a",1,"~:b",[2]]'),
    ({None: 1, True: 2, 3: 4, 1.5: 5, "~a": 6}, '["^ ","~_",1,"~?t",2,"~i3",4,"~d1.5",5,"~~a",6]'),
    ({(1, 2): "a", None: [1]}, '["~#cmap",[[1,2],"a",null,[1]]]'),
    ({FrozenMap({"a": (1,)}): 1}, '["~#cmap",[["^ ","a",[1]],1]]'),
    (TaggedValue("point", [1, 2]), '["~#point",[1,2]]'),
    ([TaggedValue("X", "a")], '["~Xa"]'),
    # one value alone is quoted
    ("text", '["~#\'","text"]'),
    (None, '["~#\'",null]'),
    (7, '["~#\'",7]'),
    (Keyword("k"), '["~#\'","~:k"]'),
]


@pytest.mark.parametrize(("value", "text"), BOTH_WAYS, ids=[text for _, text in BOTH_WAYS])
def test_a_value_is_written_as_clojure_writes_it_and_read_back(value, text):
    assert transit.encode(value) == text
    assert_same(transit.decode(text), value)


ONLY_READ = [
    ('["~#list",[1,[2]]]', [1, [2]]),
    ('["~#\'","~~a"]', "~a"),
    ('["~#m",1000]', datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)),
    ('["~#u",[1,-1]]', UUID("00000000-0000-0001-ffff-ffffffffffff")),
    ('["~#\'","~t1985-04-12T23:20:50.52Z"]', datetime(1985, 4, 12, 23, 20, 50, 520_000, tzinfo=UTC)),
    ('["~#\'","~t1985-04-12T23:20:50"]', datetime(1985, 4, 12, 23, 20, 50, tzinfo=UTC)),
    ('["~?t","~?f","~_","~i1","~d2.5"]', [True, False, None, 1, 2.5]),
    ('[1.0E16,9007199254740993,"~d1.0E16"]', [1e16, 2**53 + 1, 1e16]),
    ('["~#with-meta",[[1],["^ ","~:doc","x"]]]', [1]),
    ('["~#link",["^ ","href","~rhttp://x"]]', TaggedValue("link", {"href": URI("http://x")})),
    ('["~#set",[[1,["^ ","a",[2]]]]]', frozenset({(1, FrozenMap({"a": (2,)}))})),
    ('["~"]', ["~"]),
    (
        '{"~:a":{"~#set":["~:b"]},"b":{"~#point":[1]},"~i1":{}}',
        {Keyword("a"): frozenset({Keyword("b")}), "b": TaggedValue("point", [1]), 1: {}},
    ),
]


@pytest.mark.parametrize(("text", "value"), ONLY_READ, ids=[text for text, _ in ONLY_READ])
def test_what_other_writers_write_is_read(text, value):
    assert_same(transit.decode(text), value)


# the cache ------------------------------------------------------------------------------------------------------------


def test_keys_keywords_symbols_and_tags_of_four_characters_are_written_once():
    value = [{"long": 1, "abc": 1}, {"long": "long", "abc": "abc"}, Keyword("ab"), Keyword("ab"), Keyword("a"), Keyword("a")]
    text = '[["^ ","long",1,"abc",1],["^ ","^0","long","abc","abc"],"~:ab","^1","~:a","~:a"]'
    assert transit.encode(value) == text
    assert_same(transit.decode(text), value)


def test_length_is_javas_where_one_character_can_count_two():
    assert transit.encode([{"😀😀": 1}, {"😀😀": 1}]) == '[["^ ","\\ud83d\\ude00\\ud83d\\ude00",1],["^ ","^0",1]]'
    assert transit.decode('[["^ ","😀😀",1],["^ ","^0",1]]') == [{"😀😀": 1}, {"😀😀": 1}]


@pytest.mark.parametrize("at", [0, 43, 44, 1935])
def test_codes_have_one_digit_or_two(at):
    assert index(code(at)) == at
    assert code(at) == {0: "^0", 43: "^[", 44: "^10", 1935: "^[["}[at]


def test_a_full_cache_begins_anew_on_both_sides():
    names = [Keyword(f"name-{number}") for number in range(44 * 44 + 1)]
    value = [*names, names[-1], names[0], names[1], names[1]]
    written = json.loads(transit.encode(value))
    # the last name took the first code; the first name was forgotten and takes the second, and so on
    assert written[-4:] == ["^0", "~:name-0", "~:name-1", "^2"]
    assert_same(transit.decode(json.dumps(written)), value)


@pytest.mark.parametrize("text", ['["^0"]', '["~:name","^1"]', '["~:name","^"]', '["~:name","^zz"]', '["~:name","^000"]'])
def test_a_code_that_stands_for_nothing_is_refused(text):
    with pytest.raises(ValueError, match="stands for nothing"):
        transit.decode(text)


# round trips ----------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
names = texts.filter(lambda text: text and not text.startswith(":"))
_SCALARS = (
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    texts,
    st.sampled_from(["~", "^", "`", "^ ", "~#", "~#set", "^0", "~:a", "name", "other-name"]),
    st.binary(max_size=8),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.fractions(),
    st.uuids(),
    st.datetimes(timezones=st.just(UTC)).map(
        lambda instant: instant.replace(microsecond=instant.microsecond // 1000 * 1000, fold=0)
    ),
    st.builds(Keyword, names),
    st.sampled_from([Keyword("name"), Keyword("my.app/name"), Symbol("name")]),
    st.builds(Symbol, names),
    st.builds(URI, texts),
    st.characters(max_codepoint=0xFFFF, exclude_categories=("Cs",)).map(Char),
    st.builds(TaggedValue, st.sampled_from("XYZ"), texts),
)


@st.composite
def scalars(draw):
    return draw(st.one_of(_SCALARS))


keys = st.recursive(scalars(), lambda inner: st.lists(inner, max_size=2).map(tuple) | st.frozensets(inner, max_size=2))
values = st.recursive(
    scalars(),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4),
        st.frozensets(keys, max_size=4),
        st.builds(TaggedValue, st.sampled_from(["point", "my.app/thing"]), inner),
    ),
    max_leaves=10,
)


@given(values)
def test_what_is_written_is_read_back_with_its_types(value):
    assert_same(transit.decode(transit.encode(value)), value)


def test_nan_comes_back_as_nan():
    assert math.isnan(transit.decode(transit.encode([math.nan]))[0])
    assert transit.encode({math.nan: 1}) == '["^ ","~zNaN",1]'


def test_what_other_types_become():
    class Colour(StrEnum):
        RED = "red"

    later = INSTANT.astimezone(timezone(timedelta(hours=9))) + timedelta(microseconds=999)
    value = [(1, 2), {1}, bytearray(b"a"), memoryview(b"a"), Colour.RED, later]
    assert_same(transit.decode(transit.encode(value)), [[1, 2], frozenset({1}), b"a", b"a", "red", INSTANT])


def test_keys_can_be_written_as_keywords():
    serializer = TransitSerializer(keyword_keys=True)
    text = serializer.encode({"email": "a", Symbol("s"): {"b": "b", 1: 2}, ("c",): [{"email": 1}]})
    assert text == '["~#cmap",["~:email","a","~$s",["^ ","~:b","b","~i1",2],["c"],[["^ ","^1",1]]]]'


# refusals -------------------------------------------------------------------------------------------------------------


class Shade(Enum):
    DARK = 1


def nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


REFUSED = [
    (datetime(2026, 1, 1), TypeError, "naive"),
    (date(2026, 1, 1), TypeError, "holds a date"),
    (timedelta(1), TypeError, "holds a timedelta"),
    (Shade.DARK, TypeError, "holds a Shade"),
    (object(), TypeError, "holds a object"),
    (1j, TypeError, "holds a complex"),
    (Decimal("NaN"), ValueError, "not finite"),
    ("\ud800", ValueError, "surrogate"),
    (Keyword("\ud800"), ValueError, "surrogate"),
    (TaggedValue("\ud800a", []), ValueError, "surrogate"),
    (TaggedValue("#", "x"), ValueError, "tag"),
    (10**5000, ValueError, "digits"),
    (nested(100), ValueError, "nested"),
    ("x" * 2**20, ValueError, "too large"),
    (["x" * 2**20, "x" * 2**20], ValueError, "too large"),
]


@pytest.mark.parametrize(
    ("payload", "error", "why"), REFUSED, ids=[f"{number}: {why}" for number, (_, _, why) in enumerate(REFUSED)]
)
@pytest.mark.parametrize("place", [lambda value: value, lambda value: [{"key": value}]], ids=["alone", "inside"])
def test_what_transit_cannot_carry_is_refused(payload, error, why, place):
    with pytest.raises(error, match=why) as refusal:
        transit.encode(place(payload))
    assert "xxx" not in str(refusal.value)


@pytest.mark.slow
def test_a_few_lists_that_stand_for_billions_are_refused():
    value = []
    for _ in range(90):
        value = [value, value]
    with pytest.raises(ValueError, match="too large"):
        transit.encode(value)


def test_a_hundred_levels_are_carried():
    assert transit.decode(transit.encode(nested(99))) == nested(99)


@pytest.mark.parametrize(
    "text",
    [
        '["^ ","a",1,"~:a",2]',
        '["^ ","~i1",1,"~?t",2]',
        '["~#set",["a","~:a"]]',
        '["~#cmap",[[1],1,[1],2]]',
        '{"a":1,"~:a":2}',
    ],
)
def test_two_keys_that_are_one_in_python_are_refused(text):
    with pytest.raises(ValueError, match="one in Python"):
        transit.decode(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "secret",
        "[NaN]",
        '["^ "',
        '["~isecret"]',
        '["~usecret"]',
        '["~msecret"]',
        '["~m99999999999999999"]',
        '["~fsecret"]',
        '["~zsecret"]',
        '["~bsecret"]',
        '["~?secret"]',
        '["~c"]',
        '["~tsecret"]',
        '["~#set","secret"]',
        '["~#cmap",[1]]',
        '["~#ratio",[1]]',
        '["~#ratio",[1,0]]',
        '["~#u",[1]]',
        '["~#set"]',
        '["~#set",[],[]]',
        '["^ ","a"]',
        '["a","~#secret"]',
        '["^ ","a","^ "]',
        '["^ ","~#set",1]',
        '"~#secret"',
    ],
)
def test_what_is_not_transit_is_refused_without_quoting_it(text):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 (the message is looked at below)
        transit.decode(text)
    assert "secret" not in str(refusal.value)


# values ---------------------------------------------------------------------------------------------------------------


def test_a_keyword_finds_what_a_text_finds():
    payload = transit.decode('["^ ","~:email","a@b.no"]')
    assert payload["email"] == "a@b.no"
    assert payload == {"email": "a@b.no"}
    [key] = payload
    assert repr(key) == "Keyword('email')"


def test_a_keyword_has_a_name_and_perhaps_a_namespace():
    assert (Keyword("my.app/a").namespace, Keyword("my.app/a").name) == ("my.app", "a")
    assert (Keyword("a").namespace, Keyword("a").name) == (None, "a")
    assert (Symbol("/").namespace, Symbol("/").name) == (None, "/")


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Keyword(":a"), ValueError),
        (lambda: Keyword(""), ValueError),
        (lambda: Keyword(1), TypeError),
        (lambda: Char("ab"), ValueError),
        (lambda: Char("😀"), ValueError),
        (lambda: TaggedValue("", 1), ValueError),
        (lambda: TaggedValue(1, 1), TypeError),
    ],
)
def test_values_that_cannot_be_are_refused(make, error):
    with pytest.raises(error):
        make()


def test_odd_keywords_of_clojure_survive():
    # (keyword "") and (keyword ":a") are possible there
    assert transit.encode(transit.decode('["~:","~::a","~:with space"]')) == '["~:","~::a","~:with space"]'


def assert_same(one, other):
    """Compare types too, where Python's ``==`` takes ``Keyword("a")`` for ``"a"`` and ``1`` for ``True``."""
    assert one == other
    assert shape(one) == shape(other)


def shape(value):
    match value:
        case dict() | FrozenMap():
            return dict, frozenset((shape(key), shape(item)) for key, item in value.items())
        case list() | tuple():
            return type(value), tuple(map(shape, value))
        case frozenset():
            return frozenset, frozenset(map(shape, value))
        case TaggedValue():
            return value.tag, shape(value.rep)
        case _:
            return type(value), value
