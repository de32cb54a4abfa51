"""Each bad client and each bad handler alone: the good ones are not hurt."""

from __future__ import annotations

import pytest

from tests.faults.nemesis import FAULTS
from tests.faults.trial import charge_nobody, survive
from tests.faults.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

HOLD_SECONDS = 1.0


@pytest.mark.parametrize("name", [n for n in FAULTS if n.startswith(("client.", "handler."))])
def test_others_are_not_hurt_by(world: World, name: str) -> None:
    evidence = survive(world, FAULTS[name], name, HOLD_SECONDS)

    charge_nobody(evidence)
