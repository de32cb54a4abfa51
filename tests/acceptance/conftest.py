"""What several of the tests start with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import ServiceProcess, query


@pytest.fixture
def idle(shared_services: Callable[..., ServiceProcess]) -> ServiceProcess:
    """A service that works on nothing, so that what is in it stays."""
    service = shared_services(TASK_CONSUMER_WORKERS=0)
    query(service.env["DATABASE_URL"], "TRUNCATE task")
    return service


FAST = {"test_api.py", "test_api_docs.py", "test_mounting.py", "test_query_strings.py"}
"""The others mostly wait for services of their own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name not in FAST:
            item.add_marker(pytest.mark.slow)
