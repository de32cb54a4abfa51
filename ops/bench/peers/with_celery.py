"""Celery over Redis."""

from __future__ import annotations

import os

from celery import Celery

from ops.bench.peers import api, tally

celery = Celery("bench", broker=os.environ["BENCH_REDIS_URL"])
celery.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=128,
)
_tally: tally.Tally | None = None


@celery.task(name="work")
def task(content: str) -> None:
    assert _tally
    _tally.add()


async def create(content: str) -> str:
    return str(task.delay(content).id)


app = api.create_app(create)


def enqueue(count: int) -> None:
    with celery.producer_pool.acquire(block=True) as producer:
        for _ in range(count):
            task.apply_async((api.CONTENT,), producer=producer)


def work() -> None:
    global _tally
    _tally = tally.own()
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=warning")
    celery.worker_main(["worker", "--pool=solo", *quiet])
