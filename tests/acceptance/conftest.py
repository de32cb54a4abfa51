"""What several of the tests start with."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness import ServiceProcess, query


@pytest.fixture
def idle(shared_services: Callable[..., ServiceProcess]) -> ServiceProcess:
    """A service that works on nothing, so that what is in it stays."""
    service = shared_services(TASK_CONSUMER_WORKERS=0)
    query(service.env["DATABASE_URL"], "TRUNCATE task")
    return service
