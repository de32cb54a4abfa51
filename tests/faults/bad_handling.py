"""Tasks whose handlers misbehave, among others that don't."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from tests.faults.bad_handlers import BLOCKED_SECONDS, DEEDS, KINDS
from tests.faults.fault import FAULTS, Scene
from tests.faults.neighbours import PULSE_SECONDS, create, neighbours, wait_until_ended

_ATTEMPTS = 2
_END_SECONDS = 40.0


def _handler(
    group: str,
    number: int,
    ways: Sequence[str] = tuple(KINDS),
    *,
    held_seconds: float = 0.0,
    cancels: bool = False,
) -> None:
    """A fault of so many tasks. `held_seconds` is how long they hold the loop all in all."""
    name = f"handler.{group}"

    def fault(scene: Scene) -> None:
        chance = scene.random
        with neighbours(scene, name, PULSE_SECONDS + held_seconds):
            ids = []
            for _ in range(number):
                service = chance.choice(scene.world.services)
                ids.append(
                    create(
                        scene,
                        service,
                        KINDS[chance.choice(ways)],
                        attempts=_ATTEMPTS,
                        does=chance.choice(list(DEEDS[group])),
                        draw=chance.getrandbits(32),
                        is_bad=True,
                    )
                )
                if cancels and chance.random() < 0.5:
                    with suppress(OSError):
                        service.request("PATCH", f"/task/{ids[-1]}/cancel")
            wait_until_ended(scene, [id for id in ids if id], _END_SECONDS)

    FAULTS[name] = fault


_handler("poison", 40)
_handler("forks", 15)
_handler("blocks", 2, ["loop"], held_seconds=2 * _ATTEMPTS * BLOCKED_SECONDS)
_handler("deaf", 10, ["thread", "process"], cancels=True)
_handler("logs", 15)
_handler("progress", 8)
