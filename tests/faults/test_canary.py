"""Whatever a handler raises, returns, reports or logs: that task ends, and all others go on.

Hypothesis draws what a handler does. A canary is a task of another kind; it completes within two
seconds after each.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasksvc.domain.task import FINAL
from tests.handlers.drawn import FAILURES, ODD, Failure, Odd, Plan, written
from tests.harness import ServiceProcess

pytestmark = pytest.mark.slow

_CANARY_SECONDS = 2.0

_TEXTS = st.text(st.characters(), max_size=20)  # with NUL, halves of pairs, and all controls

_PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.decimals(),
    _TEXTS,
    st.binary(max_size=20),
    st.datetimes(),
    st.timedeltas(),
    st.uuids(),
    st.fractions(),
    st.complex_numbers(),
    st.sampled_from(sorted(ODD)).map(Odd),
)

_VALUES = st.recursive(
    _PLAIN,
    lambda values: st.one_of(
        st.lists(values, max_size=3),
        st.tuples(values, values),
        st.dictionaries(st.one_of(_TEXTS, st.integers(), st.none()), values, max_size=3),
        st.frozensets(_TEXTS, max_size=3),
    ),
    max_leaves=5,
)

_DELAYS = st.one_of(
    st.sampled_from(
        [None, math.inf, -math.inf, math.nan, 1e12, 1e18, 10**400, "60", Decimal(2), timedelta.max]
    ),
    st.sampled_from([0, 1e-300, -1, timedelta(seconds=-5), datetime.max, 31_622_400, 31_622_401]),
    _PLAIN,
)

_SINGLE = st.one_of(
    st.tuples(st.sampled_from(sorted(FAILURES)), _VALUES),
    st.tuples(st.sampled_from(["Retry", "Retry that was changed"]), _DELAYS),
).map(lambda drawn: Failure(*drawn))

_FAILURES = st.recursive(
    _SINGLE,
    lambda failures: st.lists(failures, min_size=1, max_size=3).map(
        lambda members: Failure("group", None, tuple(members))
    ),
    max_leaves=4,
)

_PLANS = st.tuples(
    st.lists(_PLAIN, max_size=3),
    st.lists(_VALUES, max_size=2),
    st.one_of(st.none(), _FAILURES, _FAILURES),
    _VALUES,
).map(lambda drawn: Plan(*drawn))


@pytest.fixture(scope="module")
def service(shared_services: Callable[..., ServiceProcess]) -> ServiceProcess:
    return shared_services(TASKSVC_HANDLERS="tests.handlers.drawn", TASK_RETRY_BASE_SECONDS=0)


def check(service: ServiceProcess, kind: str, plan: Plan) -> None:
    drawn = service.create(written(plan), kind=kind)["id"]
    task = _settled(service, drawn)

    began = time.monotonic()
    canary = service.wait(service.create(kind="canary")["id"], _CANARY_SECONDS)
    assert canary["status"] == "completed"
    assert time.monotonic() - began < _CANARY_SECONDS
    if task["status"] == "pending":
        assert task["error"]["attempt"] == 1
        assert "run_at" in task
        service.request("PATCH", f"/task/{drawn}/cancel")
    attempts = json.loads(service.request("GET", f"/task/{drawn}/attempts")[2])["attempts"]
    assert len(attempts) <= 2
    assert {attempt["outcome"] for attempt in attempts} <= {"completed", "failed", "retried"}


def _settled(service: ServiceProcess, id: str) -> dict[str, Any]:
    """The task, once it is final or waits for its retry."""
    deadline = time.monotonic() + 15
    while True:
        task = service.task(id)
        if task["status"] in FINAL or (task["status"] == "pending" and "run_at" in task):
            return task
        assert time.monotonic() < deadline, task
        time.sleep(0.005)


def drawn(examples: int) -> Any:
    """The same examples each time, for as long as the strategies are the same."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.timeout(120)
@drawn(80)
@given(plan=_PLANS)
def test_on_the_loop(service: ServiceProcess, plan: Plan) -> None:
    check(service, "drawn-loop", plan)


@pytest.mark.timeout(120)
@drawn(50)
@given(plan=_PLANS)
def test_in_a_thread(service: ServiceProcess, plan: Plan) -> None:
    check(service, "drawn-thread", plan)


@pytest.mark.timeout(120)
@drawn(15)
@given(plan=_PLANS)
def test_in_a_process(service: ServiceProcess, plan: Plan) -> None:
    check(service, "drawn-process", plan)


def test_service_is_well(service: ServiceProcess) -> None:
    status, _, body = service.get("/health")

    assert (status, json.loads(body)) == (200, {"status": "ok"})
    assert service.process.poll() is None
