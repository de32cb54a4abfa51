"""Which kinds a create may name, and how often its task is tried."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from tasksvc.domain.errors import Overloaded, StoreUnavailable, UnknownKind
from tasksvc.domain.task import Options
from tasksvc.services import known_kinds as kinds_module
from tasksvc.services.known_kinds import Kinds
from tasksvc.store.task_store import TaskStore
from tests.harness import query
from tests.integration.conftest import MakeWorker


class Asked(Kinds):
    """Counts what it asks PostgreSQL for."""

    def __init__(self, store: TaskStore, *, max_waiting: int = 10_000) -> None:
        super().__init__(store, {"own": 7}, max_waiting=max_waiting)
        self.statements: list[list[str]] = []

    async def _look_up(self, kinds: list[str]) -> Iterable[object]:  # type: ignore[override]
        self.statements.append(kinds)
        return await super()._look_up(kinds)


async def test_kind_is_known_while_its_workers_are_away(
    make_worker: MakeWorker, database_url: str
) -> None:
    """And its tasks are tried as often as it says, wherever the create arrives."""
    web = make_worker()
    worker = make_worker(kinds={"default": None, "greet": 9, "plain": None})
    with pytest.raises(UnknownKind):
        await web.tasks.check_kind("greet")
    await worker.service.register()
    await worker.service.leave()
    other = make_worker()
    for kind in ("greet", "plain"):
        await other.tasks.check_kind(kind)
        await other.tasks.create("x", options=Options(kind=kind))
    await other.tasks.create_many([("x", Options(kind="greet", max_attempts=2))])

    statement = "SELECT kind, max_attempts FROM task ORDER BY id"
    assert query(database_url, statement) == [("greet", 9), ("plain", 3), ("greet", 2)]


async def test_unknown_kind_says_what_helps(store: TaskStore) -> None:
    kinds = Kinds(store, {}, max_waiting=10)

    with pytest.raises(UnknownKind, match="No process serves tasks of this kind"):
        await kinds.check("greet")
    for _ in range(2):
        with pytest.raises(UnknownKind, match="TASKSVC_HTTP_ALLOW"):
            await kinds.check("http")


async def test_all_ask_together_and_remember(
    store: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.register_worker("0" * 32, "w", 60, {"greet": 5})
    kinds = Asked(store)
    for _ in range(3):
        found = await asyncio.gather(
            *(kinds.check(kind) for kind in ["greet", "never", "own", "greet"] * 100),
            return_exceptions=True,
        )
        assert [type(each) for each in found] == [type(None), UnknownKind, *[type(None)] * 2] * 100
    assert len(kinds.statements) <= 2
    assert (kinds.max_attempts("greet"), kinds.max_attempts("own")) == (5, 7)

    monkeypatch.setattr(kinds_module, "_UNKNOWN_SECONDS", 0.0)
    monkeypatch.setattr(kinds_module, "_KNOWN_SECONDS", 0.0)
    later = Asked(store)
    for _ in range(2):
        with pytest.raises(UnknownKind):
            await later.check("never")
    assert later.statements == [["never"]] * 2


async def test_names_that_anybody_makes_up_are_not_kept(
    store: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds_module, "_MOST", 5)
    kinds = Asked(store)
    checks = [kinds.check(f"kind-{number}") for number in range(100)]
    await asyncio.gather(*checks, return_exceptions=True)

    assert len(kinds._unknown) == 5


async def test_waiting_line_is_bounded(store: TaskStore) -> None:
    kinds = Asked(store, max_waiting=3)
    checks = [kinds.check(f"kind-{number}") for number in range(10)]
    found = await asyncio.gather(*checks, return_exceptions=True)

    assert {type(each) for each in found} == {UnknownKind, Overloaded}


async def test_nothing_is_remembered_of_an_outage(
    store: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def be_away(kinds: object) -> None:
        raise StoreUnavailable

    kinds = Asked(store)
    with monkeypatch.context() as patch:
        patch.setattr(store, "find_kinds", be_away)
        with pytest.raises(StoreUnavailable):
            await kinds.check("greet")
    await store.register_worker("0" * 32, "w", 60, {"greet": 5})

    await kinds.check("greet")
