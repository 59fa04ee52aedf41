"""Names of queues and job types: what Clojure's EDN reader reads as a keyword, in one stored form."""

from __future__ import annotations

import pytest

from sa_proletarian.clojure import Keyword
from sa_proletarian.clojure.names import stored_name

KEYWORDS = [
    "a",
    "my.app/echo",
    "proletarian/default",
    "a-b_c*d+e!f?g$h%i&j=k<l>m",
    "a/b?",
    "a:b",
    "a'b#c",
    "blåbær/øl",
    "-1",
    "a:b/c",
]


@pytest.mark.parametrize("name", KEYWORDS)
def test_a_name_has_one_stored_form_however_it_is_written(name):
    assert (
        stored_name("queue", name) == stored_name("queue", f":{name}") == stored_name("queue", Keyword(name)) == f":{name}"
    )


@pytest.mark.parametrize("name", ["*", "a" * 199])
def test_odd_but_readable_names_are_taken(name):
    assert stored_name("queue", name) == f":{name}"


UNREADABLE = [
    "",
    ":",
    "::a",
    "a b",
    "a,b",
    "a;b",
    'a"b',
    "a(b",
    "a\\b",
    "a@b",
    "a^b",
    "a/b/c",
    "/a",
    "a/",
    "/",
    "a:",
    "a::b",
    "a:/b",
    "a/b:",
    "a/:b",
    "1a",
    "a/1",
    "#a",
    "'a",
    "a\n",
    "a\x00",
    "\ud800",
    "a" * 200,
]


@pytest.mark.parametrize("name", UNREADABLE, ids=ascii)
def test_what_would_stop_a_clojure_worker_is_refused(name):
    with pytest.raises(ValueError, match="Clojure keyword"):
        stored_name("queue", name)


def test_names_are_texts():
    with pytest.raises(TypeError, match="job_type must be a text"):
        stored_name("job_type", 7)
