from __future__ import annotations

import enum
import functools

import pytest

from sa_proletarian import Proletarian, Retry


class Kind(enum.StrEnum):
    WELCOME = "welcome"


class OldKind(str, enum.Enum):  # noqa: UP042
    GOODBYE = "goodbye"


def handler(session, job):
    pass


class Shop:
    def ship(self, session, job):
        pass

    def __call__(self, session, job):
        pass


@pytest.fixture
def jobs():
    return Proletarian()


def test_the_decorator_gives_the_function_back(jobs):
    assert jobs.handler("welcome")(handler) is handler


def test_a_handler_is_found_with_what_was_said_about_it(jobs):
    retry, on_failed = Retry(1), print
    jobs.handler("welcome", retry=retry, on_failed=on_failed)(handler)
    found = jobs.registration("welcome")
    assert (found.handler, found.retry, found.on_failed) == (handler, retry, on_failed)


def test_what_was_not_said_is_left_to_the_worker(jobs):
    jobs.handler("welcome")(handler)
    found = jobs.registration("welcome")
    assert (found.retry, found.on_failed) == (None, None)


def test_a_type_that_nobody_registered_has_no_handler(jobs):
    jobs.handler("welcome")(handler)
    assert jobs.registration("goodbye") is None


def test_the_handler_of_every_type_takes_only_what_has_none_of_its_own(jobs):
    jobs.handler("*")(handler)
    jobs.handler("welcome")(print)
    assert jobs.registration("welcome").handler is print
    assert jobs.registration("anything").handler is handler


def test_the_known_types_are_named_or_all(jobs):
    assert jobs.known_types() == []
    jobs.handler("welcome")(handler)
    jobs.handler("export.v2")(handler)
    assert jobs.known_types() == ["export.v2", "welcome"]
    jobs.handler("*")(handler)
    assert jobs.known_types() is None


def test_two_registries_know_nothing_of_each_other(jobs):
    jobs.handler("welcome")(handler)
    assert Proletarian().registration("welcome") is None


def test_a_member_of_a_text_enum_is_its_text(jobs):
    jobs.handler(Kind.WELCOME)(handler)
    jobs.handler(OldKind.GOODBYE)(handler)
    assert jobs.known_types() == ["goodbye", "welcome"]
    assert {type(name) for name in jobs.known_types()} == {str}
    assert jobs.registration("goodbye").handler is handler


@pytest.mark.parametrize("name", ["a", "welcome", "mail:send.v2-final_1", "x" * 200])
def test_plain_names_are_job_types(jobs, name):
    jobs.handler(name)(handler)
    assert jobs.known_types() == [name]


@pytest.mark.parametrize("name", ["", "two words", "x" * 201, "new\nline", "ünïcode", "nul\x00", "**", "a/b"])
def test_other_texts_are_not(jobs, name):
    with pytest.raises(ValueError, match="job_type must be 1 to 200 of the characters"):
        jobs.handler(name)


def test_a_decorator_without_a_name_says_what_is_missing(jobs):
    with pytest.raises(TypeError, match=r'name the job type, as in @jobs.handler\("welcome"\)'):
        jobs.handler(handler)


def test_a_type_has_one_handler(jobs):
    jobs.handler("welcome")(handler)
    with pytest.raises(ValueError, match="'welcome' has a handler already"):
        jobs.handler("welcome")(print)
    assert jobs.registration("welcome").handler is handler


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"retry": 3}, "retry must be a Retry or a function"),
        ({"retry": {"retries": 3}}, "retry must be a Retry or a function"),
        ({"on_failed": "mail me"}, "on_failed"),
    ],
)
def test_what_goes_with_a_handler_is_checked_at_once(jobs, options, words):
    with pytest.raises(TypeError, match=words):
        jobs.handler("welcome", **options)


def generator(session, job):
    yield


async def async_generator(session, job):
    yield


@pytest.mark.parametrize("function", [generator, async_generator])
def test_a_generator_is_refused_because_its_body_would_never_run(jobs, function):
    with pytest.raises(TypeError, match="a generator, whose body would not run"):
        jobs.handler("welcome")(function)


@pytest.mark.parametrize("function", [None, 7, "handler", object()])
def test_what_cannot_be_called_is_refused(jobs, function):
    with pytest.raises(TypeError, match="must be callable"):
        jobs.handler("welcome")(function)


# a handler in the place of a job type


@pytest.mark.parametrize("function", [handler, Shop().ship, Shop(), functools.partial(handler), lambda session, job: None])
def test_a_handler_stands_for_its_type(jobs, function):
    jobs.handler("ship")(function)
    assert jobs.type_of(function) == "ship"


def test_a_bound_method_stands_for_its_type_however_often_it_is_looked_up(jobs):
    shop = Shop()
    jobs.handler("ship")(shop.ship)
    assert jobs.type_of(shop.ship) == "ship"
    with pytest.raises(TypeError, match="registered handler"):
        jobs.type_of(Shop().ship)


def test_a_text_stands_for_itself_whether_or_not_it_has_a_handler_here(jobs):
    assert jobs.type_of("elsewhere") == "elsewhere"


def test_a_function_that_handles_several_types_stands_for_none_of_them(jobs):
    jobs.handler("one")(handler)
    jobs.handler("two")(handler)
    with pytest.raises(ValueError, match="handles one, two: say which job type you mean"):
        jobs.type_of(handler)


def test_the_handler_of_every_type_stands_for_none(jobs):
    jobs.handler("*")(handler)
    with pytest.raises(ValueError, match="say which job type you mean"):
        jobs.type_of(handler)


@pytest.mark.parametrize("target", [handler, None, 7, object()])
def test_anything_else_is_no_job_type(jobs, target):
    with pytest.raises(TypeError, match="a job type must be a text or a registered handler"):
        jobs.type_of(target)


# plain functions and others


async def coroutine(session, job):
    pass


class AsyncShop:
    async def __call__(self, session, job):
        pass


@pytest.mark.parametrize("function", [coroutine, functools.partial(coroutine), AsyncShop(), AsyncShop().__call__])
def test_async_handlers_are_known_and_can_be_refused_by_name(jobs, function):
    assert not jobs.has_coroutines()
    jobs.handler("slow")(function)
    assert jobs.has_coroutines()
    with pytest.raises(TypeError, match="handler of 'slow' is async"):
        jobs.refuse_coroutines()


@pytest.mark.parametrize("function", [handler, Shop(), Shop().ship, functools.partial(handler), print])
def test_everything_else_is_a_plain_function(jobs, function):
    jobs.handler("fast")(function)
    jobs.refuse_coroutines()
    assert not jobs.has_coroutines()


def test_an_async_on_failed_needs_a_loop_too(jobs):
    jobs.handler("work", on_failed=coroutine)(handler)
    assert jobs.has_coroutines()


# Proletarian itself


@pytest.mark.parametrize("model", [None, object, handler, "Job"])
def test_models_must_be_made_with_the_mixins(model):
    with pytest.raises(TypeError, match="expected a model made with JobMixin"):
        Proletarian(model)
    with pytest.raises(TypeError, match="expected a model made with ArchivedJobMixin"):
        Proletarian(archived_model=model)


def test_the_two_models_are_not_interchangeable():
    from sa_proletarian import ArchivedJob, Job

    with pytest.raises(TypeError, match="expected a model made with JobMixin"):
        Proletarian(ArchivedJob, Job)


def test_a_mixin_without_a_base_says_what_it_needs():
    from sa_proletarian import JobMixin

    class Lonely(JobMixin):
        pass

    with pytest.raises(TypeError, match="Lonely is not mapped: it needs a declarative base besides JobMixin"):
        Proletarian(Lonely)


def test_a_clock_is_a_function():
    from datetime import UTC, datetime

    with pytest.raises(TypeError, match="clock must be a function"):
        Proletarian(clock=datetime.now(UTC))
