"""Clocks jump by an hour, each alone: no lease runs out for it, and no task is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.faults import nemesis
from tests.faults.nemesis import Scene
from tests.faults.trial import charge_nobody, survive
from tests.faults.world import Clocks, World

pytestmark = pytest.mark.slow

HOUR = 3600


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world whose clocks can be moved."""
    if Clocks.library() is None:
        if os.environ.get("TASKSVC_NO_FAKETIME") == "1":
            pytest.skip("TASKSVC_NO_FAKETIME=1")
        pytest.fail("libfaketime is missing: install it, or set TASKSVC_NO_FAKETIME=1")
    folder = tmp_path_factory.mktemp("clocks")
    for each in (folder, *folder.parents[:2]):
        each.chmod(0o755)  # the servers, which are other users, read their clocks in it
    with World(folder, 2, clocks=Clocks(folder)) as world:
        yield world


@pytest.mark.parametrize("seconds", [-HOUR, -90, 90, HOUR])
@pytest.mark.parametrize("whose", ["service", "postgres", "redis"])
def test_clock_that_jumps_and_jumps_back(world: World, whose: str, seconds: int) -> None:
    def jump(scene: Scene) -> None:
        assert scene.world.clocks is not None
        scene.world.clocks.move(whose, seconds)
        scene.hold(1.5)
        scene.world.clocks.move(whose, 0)
        if whose == "postgres":
            nemesis._wait_out(scene.world)

    evidence = survive(world, jump, f"clock.{whose}_{seconds}")
    if whose != "postgres":  # its clock alone decides about leases
        charge_nobody(evidence)


@pytest.mark.parametrize("seconds", [-60, 60])
@pytest.mark.parametrize("whose", ["service", "redis"])
def test_clock_that_stays_wrong(world: World, whose: str, seconds: int) -> None:
    assert world.clocks is not None
    world.clocks.move(whose, seconds)
    try:
        fault = nemesis.FAULTS["redis.delete"]
        evidence = survive(world, fault, f"clock.wrong_{whose}_{seconds}")
    finally:
        world.clocks.move(whose, 0)
    charge_nobody(evidence)
