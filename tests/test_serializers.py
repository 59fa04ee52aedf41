"""What a payload may be: every text that PostgreSQL, or Python on the way back, would choke on is refused in the call."""

from __future__ import annotations

import array
import dataclasses
import enum
import json
import math
import sys
import uuid
from collections import ChainMap, OrderedDict, deque, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select, text

from sa_proletarian import Job, JSONSerializer, serializers
from sa_proletarian.serializers import MAX_BYTES, MAX_DEPTH, checked, loads

NOON = datetime(2026, 3, 1, 12, 0, 0, 5, tzinfo=UTC)
ID = uuid.UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f")


class Nowhere(tzinfo):
    def utcoffset(self, moment):
        return None


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Size(enum.StrEnum):
    BIG = "big"


class OldText(str, enum.Enum):  # noqa: UP042
    PLAIN = "plain"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Address:
    street: str
    since: date


@dataclasses.dataclass(frozen=True, slots=True)
class Customer:
    key: uuid.UUID
    address: Address
    tags: tuple[str, ...] = ()


class Line(pydantic.BaseModel):
    sku: str
    price: Decimal
    at: datetime


class Order(pydantic.BaseModel):
    lines: list[Line]


class Point(msgspec.Struct):
    x: int
    at: datetime


class Renamed(msgspec.Struct, rename="camel"):
    user_id: int


class Tagged(msgspec.Struct, tag="circle", tag_field="shape"):
    radius: float


Pair = namedtuple("Pair", "left right")  # noqa: PYI024


def encoded(payload):
    """Encode as the job's constructor does."""
    return checked(JSONSerializer().encode(payload))


def nested(levels, core):
    for _ in range(levels):
        core = [core]
    return core


# what is understood


@pytest.mark.parametrize("value", [None, True, False, 0, -1, 2**63, 1.5, -0.0, 5e-324, "", "naïve 🙂", [], {}, {"": [{}]}])
def test_json_is_left_as_it_is(value):
    assert encoded(value) == value
    assert type(encoded(value)) is type(value)


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (NOON, "2026-03-01T12:00:00.000005+00:00"),
        (NOON.astimezone(ZoneInfo("America/New_York")), "2026-03-01T07:00:00.000005-05:00"),
        (NOON.astimezone(timezone(timedelta(hours=5, minutes=45, seconds=1))), "2026-03-01T17:45:01.000005+05:45:01"),
        (datetime.max.replace(tzinfo=UTC), "9999-12-31T23:59:59.999999+00:00"),
        (date(2026, 3, 1), "2026-03-01"),
        (time(12, 30), "12:30:00"),
        (time(12, 30, tzinfo=UTC), "12:30:00+00:00"),
        (ID, "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"),
        (Decimal("10.50"), "10.50"),
        (Decimal("-0"), "-0"),
        (Decimal("1E+400"), "1E+400"),
        (Decimal("1E-999999"), "1E-999999"),
        (Decimal("0.1234567890123456789012345678901234567890"), "0.1234567890123456789012345678901234567890"),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (Size.BIG, "big"),
        (OldText.PLAIN, "plain"),
        (Rights.READ | Rights.WRITE, 3),
        ((1, (2,)), [1, [2]]),
        (Pair(1, 2), [1, 2]),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (ChainMap({"a": 1}, {"b": 2}), {"a": 1, "b": 2}),
        ({Size.BIG: 1, OldText.PLAIN: 2}, {"big": 1, "plain": 2}),
        (Customer(ID, Address("High St", date(2026, 1, 2)), ("a",)),
         {"key": str(ID), "address": {"street": "High St", "since": "2026-01-02"}, "tags": ["a"]}),
        (Order(lines=[Line(sku="x", price=Decimal("1.10"), at=NOON)]),
         {"lines": [{"sku": "x", "price": "1.10", "at": "2026-03-01T12:00:00.000005Z"}]}),
        (pydantic.RootModel[list[int]]([1, 2]), [1, 2]),
        (Point(1, NOON), {"x": 1, "at": "2026-03-01T12:00:00.000005+00:00"}),
        (Renamed(7), {"userId": 7}),
        (Tagged(1.5), {"shape": "circle", "radius": 1.5}),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_the_usual_python_values_become_json(value, stored):
    assert encoded(value) == stored
    assert encoded({"in": [value]}) == {"in": [stored]}
    assert json.loads(json.dumps(encoded(value), allow_nan=False)) == stored


def test_subclasses_of_plain_types_become_the_plain_types():
    class Text(str):
        __slots__ = ()

    class Number(int):
        pass

    class Share(float):
        pass

    class Record(dict):
        pass

    value = encoded(Record({Text("key"): [Text("value"), Number(1), Share(0.5)]}))
    assert type(value) is dict
    assert [type(key) for key in value] == [str]
    assert [type(item) for item in value["key"]] == [str, int, float]


def test_the_payload_is_copied_so_that_later_changes_do_not_matter():
    payload = {"tags": ["new"]}
    job = Job("welcome", payload)
    payload["tags"].append("changed")
    assert job.payload == {"tags": ["new"]}


def test_what_was_encoded_comes_back_as_plain_json():
    value = encoded({"at": NOON, "id": ID})
    assert JSONSerializer().decode(value) == {"at": "2026-03-01T12:00:00.000005+00:00", "id": str(ID)}


# what is refused


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, Decimal("NaN"), Decimal("sNaN"), Decimal("-Infinity")])
def test_nan_and_infinities_are_refused(value):
    with pytest.raises(ValueError, match="NaN or an infinity"):
        encoded({"x": [value]})


def test_nan_inside_a_model_is_refused():
    class Measure(pydantic.BaseModel):
        value: float

    class Struct(msgspec.Struct):
        value: float

    for payload in (Measure(value=math.nan), Struct(math.inf)):
        with pytest.raises(ValueError, match="NaN or an infinity|too deeply"):
            encoded(payload)


@pytest.mark.parametrize("bad", ["\x00", "a\x00b", "\ud800", "\udfff tail", "\ude00\ud83d"])
@pytest.mark.parametrize("place", [lambda bad: bad, lambda bad: {"k": [bad]}, lambda bad: {bad: 1}])
def test_nul_and_lone_surrogates_are_refused_as_values_and_as_keys(bad, place):
    with pytest.raises(ValueError, match="NUL|surrogate"):
        encoded(place(bad))


@pytest.mark.parametrize("key", [1, 1.5, True, None, (1, 2), ID, date(2026, 3, 1), Level.HIGH, Colour.RED, b"k"])
def test_keys_that_are_not_text_are_refused_rather_than_changed(key):
    with pytest.raises(TypeError, match="key that is not text"):
        encoded({"outer": {key: 1}})


@pytest.mark.parametrize("value", [datetime(2026, 3, 1, 1, 30), datetime(2026, 3, 1, tzinfo=Nowhere())])
def test_naive_datetimes_are_refused(value):
    with pytest.raises(TypeError, match="naive datetime"):
        encoded({"at": value})


def test_a_time_that_does_not_know_its_offset_is_refused():
    with pytest.raises(TypeError, match="offset"):
        encoded(time(12, tzinfo=ZoneInfo("Europe/Oslo")))


@pytest.mark.parametrize(
    "value",
    [
        b"bytes",
        bytearray(b"x"),
        memoryview(b"x"),
        {1, 2},
        frozenset(),
        1j,
        Fraction(1, 3),
        timedelta(1),
        object(),
        object,
        Customer,
        Line,
        Point,
        Colour,
        len,
        iter([1]),
        (n for n in [1]),
        range(3),
        deque([1]),
        array.array("i", [1]),
        {"a": 1}.values(),
        ValueError("x"),
        sys,
        ...,
        NotImplemented,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_does_not_know_is_refused_by_name(value):
    with pytest.raises(TypeError, match="which the serializer cannot turn into JSON"):
        encoded({"x": value})


@pytest.mark.parametrize("core", [7, None, "x", True, ID, []])
def test_as_many_levels_are_allowed_as_the_limit_says_whatever_is_in_them(core):
    levels = MAX_DEPTH - (core == [])
    assert encoded(nested(levels, core)) == nested(levels, encoded(core))
    with pytest.raises(ValueError, match="at most 100 levels"):
        encoded(nested(levels + 1, core))


def test_a_payload_that_contains_itself_is_refused():
    endless = {}
    endless["self"] = [endless]
    with pytest.raises(ValueError, match="at most 100 levels"):
        encoded(endless)


def test_a_model_that_dumps_to_itself_is_refused():
    class Endless:
        def model_dump(self, mode):
            return self

    with pytest.raises(ValueError, match="at most 100 levels"):
        encoded(Endless())


def test_a_payload_may_have_a_mebibyte_and_not_a_byte_more():
    overhead = len('""')
    assert encoded("x" * (MAX_BYTES - overhead))
    with pytest.raises(ValueError, match=f"too large: {MAX_BYTES + 1} bytes of JSON, at most {MAX_BYTES}"):
        encoded("x" * (MAX_BYTES - overhead + 1))


def test_size_is_counted_in_bytes_not_in_characters():
    with pytest.raises(ValueError, match="too large"):
        encoded("🙂" * (MAX_BYTES // 4))


def test_few_objects_that_are_named_again_and_again_are_refused_before_they_fill_the_memory():
    twice = ["x"]
    for _ in range(60):
        twice = [twice, twice]
    with pytest.raises(ValueError, match="too large"):
        encoded(twice)


def test_the_limit_can_be_another():
    assert checked("xyz", max_bytes=5) == "xyz"
    with pytest.raises(ValueError, match="too large: 6 bytes of JSON, at most 5"):
        checked("wxyz", max_bytes=5)


@pytest.mark.parametrize("value", [10**5000, -(10**5000), 1 << 100_000], ids=["long", "negative", "longer"])
def test_integers_that_python_would_not_read_back_are_refused(value):
    with pytest.raises(ValueError, match="4,000 digits"):
        encoded([value])


def test_the_longest_integers_that_are_allowed_can_be_read_back():
    longest = (1 << 13_000) - 1
    assert loads(json.dumps(encoded(longest))) == longest


@pytest.mark.parametrize(
    "payload",
    [
        {"born": datetime(1980, 5, 17)},
        {"at": time(4, 13, tzinfo=ZoneInfo("Europe/Oslo"))},
        {("canary", 1980): 1},
        {"x": {"canary-1980"}},
        {"x": "canary-1980\x00"},
        {"canary-1980\ud800": 1},
        ["canary-1980" * MAX_BYTES],
    ],
)
def test_no_refusal_quotes_the_payload(payload):
    with pytest.raises((TypeError, ValueError)) as refusal:
        encoded(payload)
    assert not any(quote in str(refusal.value) for quote in ("canary", "1980", "13"))


# any serializer's output passes the same checks


class Boxed:
    """An app's own serializer."""

    def encode(self, payload):
        return {"box": payload}

    def decode(self, value):
        return value["box"]


def test_an_apps_own_serializer_is_checked_as_well(monkeypatch):
    monkeypatch.setattr(Job, "serializer", Boxed())
    assert Job("welcome", 1).payload == {"box": 1}
    for bad in (math.nan, "\x00", {1: 1}, b"", nested(100, [])):
        with pytest.raises((TypeError, ValueError)):
            Job("welcome", bad)


# reading


def test_what_was_stored_by_hand_and_cannot_be_read_raises_where_the_worker_expects_it():
    with pytest.raises(ValueError, match="4300"):
        loads("1" * 5000)
    with pytest.raises(ValueError):  # noqa: PT011
        loads("{")
    with pytest.raises(RecursionError):
        loads("[" * 100_000 + "]" * 100_000)


def test_decoding_imports_nothing():
    imported = []
    watching = True
    sys.addaudithook(lambda name, arguments: imported.append(arguments[0]) if watching and name == "import" else None)
    corpus = [{"__class__": "os.system"}, {"py/object": "os.system"}, {"$type": "x"}, ["!!python/object:os.system"]]
    for payload in corpus:
        assert JSONSerializer().decode(loads(json.dumps(payload))) == payload
    watching = False
    assert imported == []


# Hypothesis

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(10**400), 10**400) | texts
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda children: st.lists(children, max_size=5) | st.dictionaries(texts, children, max_size=5),
    max_leaves=25,
)  # fmt: skip
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())) | st.binary()
    | st.datetimes() | st.datetimes(timezones=st.timezones()) | st.dates() | st.times() | st.uuids() | st.decimals()
    | st.timedeltas() | st.complex_numbers() | st.fractions() | st.sampled_from([*Colour, *Level, *Size, *OldText, ...]),
    lambda children: st.lists(children, max_size=4) | st.tuples(children, children) | st.sets(st.integers(), max_size=2)
    | st.dictionaries(st.text(st.characters(exclude_categories=())) | st.integers() | st.none(), children, max_size=4),
    max_leaves=15,
)  # fmt: skip


def same(stored, given):
    """Compare as JSON does: a float that is whole may come back as an int."""
    if isinstance(given, float) and not isinstance(stored, bool):
        return float(stored) == given
    if isinstance(given, list):
        return isinstance(stored, list) and len(stored) == len(given) and all(map(same, stored, given))
    if isinstance(given, dict):
        if not isinstance(stored, dict) or stored.keys() != given.keys():
            return False
        return all(same(stored[key], given[key]) for key in given)
    return type(stored) is type(given) and stored == given


@given(plain)
def test_plain_json_is_its_own_encoding(payload):
    assert encoded(payload) == payload


@given(anything)
def test_whatever_is_accepted_is_json_that_can_be_stored_and_whatever_is_not_is_a_value_or_type_error(payload):
    try:
        value = encoded(payload)
    except (ValueError, TypeError):
        return
    document = json.dumps(value, allow_nan=False, ensure_ascii=False)
    assert loads(document) == value
    assert "\x00" not in document
    assert "\\u0000" not in document.replace("\\\\", "")
    document.encode()


@pytest.fixture
def through(tables):
    """Send a payload through a real jsonb column, all in one transaction."""
    with tables.connect() as connection:

        def through(value):
            job = {"job_id": uuid.uuid4(), "queue": "q", "job_type": "t", "payload": value}
            counts = {"attempts": 0, "crashes": 0, "enqueued_at": NOON, "process_at": NOON}
            statement = insert(Job.__table__).values({**job, **counts})
            key = connection.execute(statement).inserted_primary_key[0]
            stored = connection.execute(select(Job.payload).where(Job.job_id == key)).scalar_one()
            question = text("SELECT payload::text FROM proletarian_job WHERE job_id = :key")
            as_text = connection.execute(question, {"key": key}).scalar_one()
            assert same(loads(as_text), value), "a worker reads the column as text"
            return stored

        yield through


@settings(max_examples=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(anything | plain)
def test_whatever_is_accepted_comes_back_from_a_jsonb_column_as_it_went_in(through, payload):
    try:
        value = encoded(payload)
    except (ValueError, TypeError):
        return
    assert same(through(value), value)


@pytest.mark.parametrize(
    "value",
    [nested(100, 1), (1 << 13_000) - 1, "x" * (MAX_BYTES - 2), 1.7976931348623157e308, 5e-324, "\uffff\x7f\x1b", 1e23],
    ids=["deep", "long integer", "large", "largest float", "smallest float", "controls", "whole float"],
)
def test_the_extremes_that_are_accepted_come_back_from_a_jsonb_column(through, value):
    assert same(through(encoded(value)), value)


@given(anything | plain)
def test_the_short_way_to_the_text_gives_the_same_text_or_the_same_refusal(value):
    def outcome(function):
        try:
            return function()
        except (TypeError, ValueError) as error:
            return type(error), str(error)

    assert outcome(lambda: serializers.text_of(value)) == outcome(lambda: serializers.encoded(JSONSerializer(), value)[1])


@pytest.mark.parametrize(
    "value", [{1: 2}, {"a": {1: 2}}, [[math.nan]], "\x00", {"\ud800": 1}, 10**3950, [[[b""]]]], ids=range(7)
)
def test_the_short_way_to_the_text_lets_nothing_through(value):
    with pytest.raises((TypeError, ValueError)):
        serializers.text_of(value)


def test_a_list_in_itself_has_no_text():
    value = []
    value.append(value)
    with pytest.raises(ValueError, match="nested too deeply"):
        serializers.text_of(value)
