"""Payloads at random, some of which no JSON can hold, and what it means that one comes back as it was."""

from __future__ import annotations

import json
import math

VALUES = (
    lambda c: None,
    lambda c: c.choice([True, False]),
    lambda c: c.randrange(-(10 ** c.randrange(1, 30)), 10 ** c.randrange(1, 30)),
    lambda c: c.choice([0.1, -0.0, 1e300, 5e-324, math.inf, -math.inf, math.nan, 1e16]),
    lambda c: "".join(chr(c.choice([c.randrange(0x250), c.randrange(0x11000)])) for _ in range(c.randrange(8))),
    lambda c: c.choice(["\0", "\ud800", "é\U0001f600", "'; DROP TABLE x", "\x1b[0m", b"bytes", 10**5000, object()]),
)


def random_value(chance, depth=0):
    kind = chance.randrange(10)
    if depth < 4 and kind == 0:
        return [random_value(chance, depth + 1) for _ in range(chance.randrange(5))]
    if depth < 4 and kind == 1:
        keys = [chance.choice(["a", "b", "é", "", 1, None, "\0"][: chance.choice([4, 4, 4, 7])]) for _ in range(4)]
        return {key: random_value(chance, depth + 1) for key in keys}
    if depth < 4 and kind == 2:
        return tuple(random_value(chance, depth + 1) for _ in range(2))
    return chance.choice(VALUES)(chance)


def alike(given, came):
    """Compare as JSON does: a tuple has become a list, and 1e300 a whole number of which it is the nearest float."""
    match given:
        case tuple() | list():
            return len(given) == len(came) and all(map(alike, given, came))
        case dict():
            return given.keys() == came.keys() and all(alike(given[key], came[key]) for key in given)
        case float():
            return float(came) == given
        case _:
            return type(given) is type(came) and given == came


def rounded(value):
    """Give a value as far as MySQL's JSON keeps it: integers beyond 64 bits are floats, not always the nearest."""

    def about(digits):
        return float(f"{float(digits):.12g}")

    def number(digits):
        return int(digits) if int(digits) in range(-(2**63), 2**64) else about(digits)

    return json.loads(json.dumps(value), parse_int=number, parse_float=about)
