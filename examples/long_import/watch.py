"""Say how far the imports are that run just now."""

from jobs import Job, engine
from sqlalchemy import select

if __name__ == "__main__":
    now = Job.__worker_table__.c
    with engine.connect() as connection:
        for worker_id, detail in connection.execute(select(now.worker_id, now.detail).where(now.kind == "job")):
            print(f"{detail['done']} of {detail['total']} {detail['note']}, by {worker_id}")
    engine.dispose()
