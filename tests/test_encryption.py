"""Encrypted payloads: the tables do not show them, and each can be read in its own job alone."""

from __future__ import annotations

import os
import subprocess
import sys
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import BigInteger, Identity, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sa_proletarian import (
    ArchivedJobMixin,
    Binding,
    DecryptionFailed,
    EncryptedSerializer,
    JobMixin,
    Outcome,
    Proletarian,
    database_generated,
)

CANARY = "canary-71c2"
KEY, OLD, OTHER = (bytes([number]) * 32 for number in (1, 2, 3))
JOB = Binding(UUID(int=7), "default", "welcome")


@pytest.fixture
def jobs(tables):
    """Return jobs whose payloads are encrypted, in the default tables."""

    class Base(DeclarativeBase):
        pass

    class Job(JobMixin, Base):
        serializer = EncryptedSerializer(KEY)

    class ArchivedJob(ArchivedJobMixin, Base):
        pass

    return Proletarian(Job, ArchivedJob)


@pytest.fixture
def seen(jobs):
    """Return a list that gets the payload of each job that is run."""
    seen = []
    for job_type in ("welcome", "goodbye"):
        jobs.handler(job_type)(lambda session, job: seen.append(job.payload))
    return seen


def add(jobs, engine, job_type="welcome", payload=CANARY, **options):
    with Session(engine) as session, session.begin():
        return jobs.enqueue(session, job_type, payload, **options).job_id


json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.text(st.characters(codec="utf-8", exclude_characters="\x00")),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.sampled_from("abc"), values, max_size=3),
    max_leaves=10,
)


@given(json)
def test_what_was_encrypted_comes_back_and_never_looks_the_same(payload):
    serializer = EncryptedSerializer(KEY)
    one, two = serializer.encode_for(payload, JOB), serializer.encode_for(payload, JOB)
    assert one != two
    assert serializer.decode_for(one, JOB) == payload == serializer.decode_for(two, JOB)


def test_jobs_by_every_way_are_encrypted_in_both_tables_and_clear_in_their_handlers(jobs, seen, tables, rows):
    add(jobs, tables)
    with Session(tables) as session, session.begin():
        session.add(jobs.job_model("welcome", CANARY))
        jobs.enqueue_many(session, [("welcome", CANARY), {"job_type": "goodbye", "payload": CANARY, "queue": "default"}])
    with tables.begin() as connection:
        jobs.enqueue(connection, "welcome", CANARY)
        jobs.enqueue_many(connection, [("welcome", CANARY)])
    stored = [payload for (payload,) in rows("SELECT payload FROM proletarian_job")]
    assert len({*stored}) == 6 and all(payload.startswith("sap1.") and CANARY not in payload for payload in stored)
    assert [jobs.process_next(tables) for _ in stored] == [Outcome.RETURNED] * 6
    assert seen == [CANARY] * 6
    assert {payload for (payload,) in rows("SELECT payload FROM proletarian_archived_job")} == {*stored}


def test_a_requeued_job_is_encrypted_anew_for_its_new_id(jobs, seen, tables, rows):
    add(jobs, tables)
    jobs.process_next(tables)
    with Session(tables) as session, session.begin():
        archived = session.scalars(select(jobs.archived_model)).one()
        assert jobs.job_model.serializer.decode_for(archived.payload, Binding.of(archived)) == CANARY
        jobs.requeue(session, archived)
    assert rows("SELECT j.payload = a.payload FROM proletarian_job j, proletarian_archived_job a") == [(False,)]
    assert jobs.process_next(tables) is Outcome.RETURNED
    assert seen == [CANARY, CANARY]


def test_keys_are_changed_one_step_at_a_time():
    before, between, after = EncryptedSerializer(OLD, KEY), EncryptedSerializer(KEY, OLD), EncryptedSerializer(KEY)
    old, new = before.encode_for(CANARY, JOB), between.encode_for(CANARY, JOB)
    for serializer in (before, between):
        assert (serializer.decode_for(old, JOB), serializer.decode_for(new, JOB)) == (CANARY, CANARY)
    assert after.decode_for(new, JOB) == CANARY
    with pytest.raises(DecryptionFailed):
        after.decode_for(old, JOB)


def changed(stored):
    """Give many things that are not what was stored."""
    version, key, sealed = stored.split(".")
    yield from (None, 7, [], {}, "", ".", "..", "....", stored + "A", stored[:-1], stored.lower(), f" {stored}")
    yield from (f"sap2.{key}.{sealed}", f"{version}.{'0' * 12}.{sealed}", f"{version}.{key}.", f"{version}.{key}.AAAA")
    for place in range(len(sealed)):
        yield f"{version}.{key}.{sealed[:place]}{'B' if sealed[place] == 'A' else 'A'}{sealed[place + 1 :]}"


def test_what_was_changed_is_refused_wherever_the_change_is():
    serializer = EncryptedSerializer(KEY)
    stored = serializer.encode_for({"a": 1}, JOB)
    for value in changed(stored):
        with pytest.raises(DecryptionFailed) as refusal:
            serializer.decode_for(value, JOB)
        assert refusal.value.__cause__ is None and sealed_part(stored) not in str(refusal.value)


def sealed_part(stored):
    return stored.split(".")[2]


@pytest.mark.parametrize(
    "other",
    [
        Binding(UUID(int=8), "default", "welcome"),
        Binding(JOB.job_id, "mail", "welcome"),
        Binding(JOB.job_id, "default", "goodbye"),
        Binding(JOB.job_id, 'default", "welcome', ""),
    ],
)
def test_what_was_moved_to_another_job_is_refused(other):
    serializer = EncryptedSerializer(KEY)
    with pytest.raises(DecryptionFailed):
        serializer.decode_for(serializer.encode_for(CANARY, JOB), other)


@pytest.mark.parametrize(
    "attack",
    [
        "payload = (SELECT payload FROM proletarian_job WHERE job_type = 'goodbye')",
        "job_id = gen_random_uuid()",
        "job_type = 'goodbye'",
        "payload = '\"plain\"'",
        "payload = '{\"n\": 1}'",
    ],
)
def test_a_job_whose_row_was_tampered_with_fails_and_the_worker_goes_on(jobs, seen, tables, rows, recorder, attack):
    job_id = add(jobs, tables)
    add(jobs, tables, "goodbye", "other")
    rows(f"UPDATE proletarian_job SET {attack} WHERE job_id = :id", id=job_id)
    outcomes = {jobs.process_next(tables, listener=recorder) for _ in range(2)}
    assert outcomes == {Outcome.GAVE_UP, Outcome.RETURNED}
    assert seen == ["other"]
    [(error,)] = rows("SELECT error FROM proletarian_archived_job WHERE status = 'failure'")
    assert "DecryptionFailed: the payload cannot be decrypted" in error
    told = error + "".join(map(repr, recorder.events)) + "".join(map(str, recorder.events))
    assert CANARY not in told and "sap1." not in told


def test_a_worker_without_the_key_fails_the_job_and_says_nothing_of_keys(jobs, seen, tables, rows):
    add(jobs, tables)
    jobs.job_model.serializer = EncryptedSerializer(OTHER)
    assert jobs.process_next(tables) is Outcome.GAVE_UP
    with Session(tables) as session, session.begin():
        with pytest.raises(DecryptionFailed):
            jobs.requeue(session, session.scalars(select(jobs.archived_model)).one())
    jobs.job_model.serializer = EncryptedSerializer(OTHER, KEY)
    with Session(tables) as session, session.begin():
        jobs.requeue(session, session.scalars(select(jobs.archived_model)).one())
    assert jobs.process_next(tables) is Outcome.RETURNED
    assert seen == [CANARY]


def test_ids_that_the_database_makes_are_refused(tables):
    class Base(DeclarativeBase):
        pass

    class Job(JobMixin, Base):
        job_id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
        job_id_strategy = staticmethod(database_generated)
        serializer = EncryptedSerializer(KEY)

    class ArchivedJob(ArchivedJobMixin, Base):
        job_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)

    with pytest.raises(TypeError, match="which the database makes too late"):
        Proletarian(Job, ArchivedJob)
    with pytest.raises(TypeError, match="does not go with ids that the database makes") as refusal:
        Job("welcome", CANARY)
    assert CANARY not in str(refusal.value)
    assert Job("welcome", CANARY, job_id=7).payload.startswith("sap1.")


def test_bad_payloads_are_refused_in_the_call_and_not_quoted(jobs, tables):
    with Session(tables) as session, session.begin():
        for payload in (object(), CANARY + "\x00", float("nan"), CANARY * 200_000):
            with pytest.raises((TypeError, ValueError)) as refusal:
                jobs.enqueue(session, "welcome", payload)
            assert CANARY not in str(refusal.value)
        session.execute(text("INSERT INTO effect VALUES ('the transaction goes on')"))


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ([], "at least one key"),
        ([b"secret-4711"], "a key must be 32 bytes, got 11"),
        (["secret-4711!"], "this text is not base64"),
        ([4711], "a key must be bytes or text, got a int"),
        ([KEY, KEY], "a key is given twice"),
    ],
)
def test_bad_keys_are_refused_and_not_quoted(keys, error):
    with pytest.raises((TypeError, ValueError), match=error) as refusal:
        EncryptedSerializer(*keys)
    assert "4711" not in str(refusal.value)


def test_keys_are_made_at_random_and_taken_as_text_of_either_alphabet():
    key = EncryptedSerializer.generate_key()
    assert key != EncryptedSerializer.generate_key()
    urlsafe = EncryptedSerializer(key.replace("+", "-").replace("/", "_"))
    assert urlsafe.decode_for(EncryptedSerializer(key).encode_for(CANARY, JOB), JOB) == CANARY
    assert key not in repr(vars(urlsafe))


def test_without_a_job_it_does_nothing():
    serializer = EncryptedSerializer(KEY)
    for call in (serializer.encode, serializer.decode):
        with pytest.raises(TypeError, match="bound to a job"):
            call(CANARY)
    with pytest.raises(TypeError, match="inner must be a plain serializer"):
        EncryptedSerializer(KEY, inner=serializer)


def test_without_cryptography_it_says_what_to_install():
    script = "import sys; sys.modules['cryptography'] = None; import sa_proletarian; sa_proletarian.EncryptedSerializer"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ}, check=False)
    assert "pip install sa-proletarian[crypto]" in done.stderr


def test_given_ids_of_any_kind_are_bound(jobs, seen, tables):
    job_id = uuid4()
    assert add(jobs, tables, job_id=job_id) == job_id
    assert jobs.process_next(tables) is Outcome.RETURNED
