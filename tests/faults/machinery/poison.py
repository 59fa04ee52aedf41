"""Rows that no API wrote, in the SQL of each database, and which of them its tables refuse by themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Poison:
    """What is inserted into one database.

    :ivar good: the columns of a row that harms nobody, and their values.
    :ivar corpus: what stands in a row instead, by name.
    :ivar refused: the names of what is refused, by the statement that goes before all the rows.
    """

    good: dict[str, str]
    corpus: dict[str, dict[str, str]]
    refused: dict[str, set[str]]


GOOD = {"queue": "'default'", "job_type": "'poison'", "payload": "'null'", "attempts": "0", "crashes": "0"}
EVERYWHERE = {
    "a number beyond floats": {"payload": "'1e5000'"},
    "the same key twice": {"payload": """'{"a": 1, "a": 2}'"""},
    "not JSON": {"payload": "'{'"},
    "NaN": {"payload": "'NaN'"},
    "nothing": {"payload": "NULL"},
    "the most attempts": {"attempts": "2147483647"},
    "almost the most attempts": {"attempts": "2147483646"},
    "negative attempts": {"attempts": "-1"},
    "the most crashes": {"crashes": "2147483647"},
    "negative crashes": {"crashes": "-1"},
    "an empty type": {"job_type": "''"},
    "a type nobody knows": {"job_type": "'unknown'"},
    "a type too long": {"job_type": "REPEAT('x', 201)"},
    "an empty queue": {"queue": "''"},
    "no id": {"job_id": "NULL"},
    "the id of zeros": {"job_id": "'00000000000000000000000000000000'"},
}
REFUSED = {"not JSON", "NaN", "nothing", "negative attempts", "negative crashes", "no id", "half a character"}

POSTGRESQL = Poison(
    good={
        **GOOD,
        "job_id": "gen_random_uuid()",
        "enqueued_at": "now()",
        "process_at": "now() - interval '1 hour'",
    },
    corpus={
        **EVERYWHERE,
        "a number with more digits than Python reads": {"payload": "('9' || repeat('0', 5000))::jsonb"},
        "nested 1,500 deep": {"payload": "(repeat('[', 1500) || repeat(']', 1500))::jsonb"},
        "nested 100,000 deep": {"payload": "(repeat('[', 100000) || repeat(']', 100000))::jsonb"},
        "a NUL": {"payload": r"""'"\u0000"'"""},
        "half a character": {"payload": r"""'"\ud800"'"""},
        "half a character in a key": {"payload": r"""'{"\udfff": 1}'"""},
        "much space": {"payload": "('[' || repeat(' ', 1000000) || ']')::jsonb"},
        "ten megabytes": {"payload": "to_jsonb(repeat('x', 10000000))"},
        "due since for ever": {"process_at": "'-infinity'"},
        "due never": {"process_at": "'infinity'"},
        "due before Christ": {"process_at": "'4000-01-01 BC'"},
        "due after the years that Python knows": {"process_at": "'20000-01-01'"},
        "due in the first year": {"process_at": "'0001-01-01 00:00+00'"},
        "due in the second year": {"process_at": "'0002-01-02 00:00+00'"},
        "enqueued since for ever": {"enqueued_at": "'-infinity'"},
        "enqueued before Christ": {"enqueued_at": "'4000-01-01 BC'"},
        "enqueued far away": {"enqueued_at": "'20000-01-01'"},
        "claimed for ever, long ago": {"claim_id": "gen_random_uuid()", "claimed_until": "'-infinity'"},
        "claimed before Christ": {"claim_id": "gen_random_uuid()", "claimed_until": "'4000-01-01 BC'"},
        "claimed without a claim": {"claimed_until": "now() - interval '1 day'"},
        "a claim without a lease": {"claim_id": "gen_random_uuid()"},
        "claimed by a novel": {"claim_id": "gen_random_uuid()", "claimed_by": "repeat('x', 1000000)"},
        "an error of ten megabytes": {"last_error": "repeat('x', 10000000)"},
        "a type that is no name": {"job_type": r"E'\x1b[31m\n; DROP TABLE'"},
        "a queue that is no name": {"queue": r"E'\n'"},
    },
    refused={
        "SELECT 1": REFUSED
        | {
            "a type too long",
            "due since for ever",
            "due never",
            "due before Christ",
            "due after the years that Python knows",
            "due in the first year",
            "nested 100,000 deep",
            "a NUL",
            "half a character in a key",
            "enqueued since for ever",
            "enqueued before Christ",
            "enqueued far away",
            "claimed for ever, long ago",
            "claimed before Christ",
        }
    },
)

UUID = "REPLACE(UUID(), '-', '')"  # MySQL keeps it so
REFUSED_BY_MARIADB = REFUSED | {
    "nested 1,500 deep",
    "claimed at no time",
    "due at no time",
    "due in the first year",
    "due when time ends",
    "enqueued at no time",
    "enqueued when time ends",
    "an id that is none",
}
REFUSED_BY_MYSQL = {"a number beyond floats", "a number with more digits than Python reads"}
"""What it refuses besides: its JSON is more than text."""
MARIADB = Poison(
    good={
        **GOOD,
        "job_id": UUID,
        "enqueued_at": "UTC_TIMESTAMP(6)",
        "process_at": "UTC_TIMESTAMP(6) - INTERVAL 1 HOUR",
    },
    corpus={
        **EVERYWHERE,
        "a number with more digits than Python reads": {"payload": "CONCAT('9', REPEAT('0', 5000))"},
        "nested 1,500 deep": {"payload": "CONCAT(REPEAT('[', 1500), REPEAT(']', 1500))"},
        "a NUL": {"payload": r"""'"\\u0000"'"""},
        "half a character": {"payload": r"""'"\\ud800"'"""},
        "much space": {"payload": "CONCAT('[', REPEAT(' ', 1000000), ']')"},
        "ten megabytes": {"payload": "JSON_QUOTE(REPEAT('x', 10000000))"},
        "due at no time": {"process_at": "'0000-00-00'"},
        "due on no day": {"process_at": "'2020-02-00'"},
        "due in the first year": {"process_at": "'0001-01-01'"},
        "due when time ends": {"process_at": "'9999-12-31 23:59:59.999999'"},
        "enqueued at no time": {"enqueued_at": "'0000-00-00'"},
        "enqueued when time ends": {"enqueued_at": "'9999-12-31 23:59:59.999999'"},
        "claimed at no time": {"claim_id": UUID, "claimed_until": "'0000-00-00'"},
        "claimed without a claim": {"claimed_until": "UTC_TIMESTAMP(6) - INTERVAL 1 DAY"},
        "a claim without a lease": {"claim_id": UUID},
        "claimed by a novel": {"claim_id": UUID, "claimed_by": "REPEAT('x', 60000)"},
        "a long error": {"last_error": "REPEAT('x', 65535)"},
        "a type that is no name": {"job_type": r"'\x1b[31m\n; DROP TABLE'"},
        "a queue that is no name": {"queue": r"'\n'"},
        "an id that is none": {"job_id": "'id'"},
    },
    refused={
        "SET SESSION sql_mode = 'STRICT_TRANS_TABLES'": REFUSED_BY_MARIADB | {"a type too long"},
        # a server that is not strict takes more, but by then the id of zeros is there
        "SET SESSION sql_mode = ''": REFUSED_BY_MARIADB | {"the id of zeros"},
    },
)

MYSQL = replace(MARIADB, refused={before: names | REFUSED_BY_MYSQL for before, names in MARIADB.refused.items()})

BY_DIALECT = {"postgresql": POSTGRESQL, "mariadb": MARIADB, "mysql": MYSQL}
