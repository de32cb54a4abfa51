"""The fakes have the interfaces of the real ones, all of them."""

from __future__ import annotations

import inspect

import pytest

from tasksvc.store.task_store import TaskStore
from tasksvc.stream.task_stream import TaskStream
from tests.memory import MemoryStore, MemoryStream


@pytest.mark.parametrize(
    ("fake", "real"),
    [(MemoryStore, TaskStore), (MemoryStream, TaskStream)],
    ids=["store", "stream"],
)
def test_fake_has_every_method_with_the_same_signature(fake: type, real: type) -> None:
    methods = {
        name: method
        for name, method in vars(real).items()
        if inspect.isfunction(method) and not name.startswith("_")
    }

    assert methods
    assert {name: inspect.signature(method) for name, method in methods.items()} == {
        name: inspect.signature(vars(fake)[name]) for name in methods
    }
