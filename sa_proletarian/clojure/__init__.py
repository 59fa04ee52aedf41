"""Work beside Clojure: enqueue into the two tables of Proletarian, and work the jobs that are in them.

Proletarian is the Clojure library that this one descends from (https://github.com/msolli/proletarian, © Martin Solli, MIT
licence). A team that has it can bring Python in beside it, without a change to its tables:

    jobs = ClojureProletarian()

    @jobs.handler("my.app/confirmation-email")
    def confirm(session, job):
        send_mail(job.payload["email"])          # of {:email "ada@example.org"}

    jobs.enqueue(session, "my.app/echo", {Keyword("text"): "from Python"})
    ClojureWorker(jobs, engine).run()

What these tables cannot give is said in ``docs/how-to/from_proletarian.md``. ``import sa_proletarian`` loads nothing of
this.
"""

from .models import ArchivedJob, ClojureArchivedJobMixin, ClojureJobMixin, Job
from .names import DEFAULT_QUEUE
from .proletarian import ClojureProletarian
from .transit import Serializer, TransitSerializer
from .values import URI, Char, FrozenMap, Keyword, Symbol, TaggedValue
from .worker import ClojureWorker

__all__ = [
    "DEFAULT_QUEUE",
    "URI",
    "ArchivedJob",
    "Char",
    "ClojureArchivedJobMixin",
    "ClojureJobMixin",
    "ClojureProletarian",
    "ClojureWorker",
    "FrozenMap",
    "Job",
    "Keyword",
    "Serializer",
    "Symbol",
    "TaggedValue",
    "TransitSerializer",
]
