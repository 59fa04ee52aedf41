from typing import assert_type

from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, Session

from sa_proletarian import ArchivedJobMixin, JobMixin, Proletarian, models_for


class Base(MappedAsDataclass, DeclarativeBase):
    pass


class TenantJob(JobMixin):
    tenant_id: Mapped[int]


class ArchivedTenantJob(ArchivedJobMixin):
    tenant_id: Mapped[int]


Job, ArchivedJob = models_for(Base)
assert_type(Job, type[JobMixin])
assert_type(ArchivedJob, type[ArchivedJobMixin])
assert_type(Proletarian(Job, ArchivedJob), Proletarian[JobMixin, ArchivedJobMixin])

tenant_jobs = Proletarian(*models_for(MetaData(), prefix="tenant_", schema="app", mixins=(TenantJob, ArchivedTenantJob)))
assert_type(tenant_jobs, Proletarian[TenantJob, ArchivedTenantJob])


def enqueue(session: Session) -> None:
    assert_type(tenant_jobs.enqueue(session, "work", tenant_id=7).tenant_id, int)
