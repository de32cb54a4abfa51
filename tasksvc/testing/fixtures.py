"""What pytest takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tasksvc.testing.process import ServiceProcess, run_service


def service_fixture(*handlers: str, **variables: object) -> Any:
    """A pytest fixture of `run_service`, one for the session. In conftest.py:

    service = service_fixture("shop.tasks")
    """
    import pytest  # here, because single runs need it not

    @pytest.fixture(scope="session")
    def service() -> Iterator[ServiceProcess]:
        with run_service(*handlers, **variables) as service:
            yield service

    return service
