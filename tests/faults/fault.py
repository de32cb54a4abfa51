"""How a fault is written down: a function that breaks something, holds, and mends it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.faults.history import Seen
from tests.faults.world import World

Fault = Callable[["Scene"], None]

FAULTS: dict[str, Fault] = {}
"""By name: `whom.what`."""


@dataclass
class Scene:
    """What a fault needs: the world, the chance, and how long to hold."""

    world: World
    random: random.Random
    hold: Callable[[float], None] = time.sleep
    seen: Seen = field(default_factory=Seen)
    """What a fault saw of the service while it held."""

    def some_time(self, least: float = 0.3, most: float = 2.0) -> None:
        self.hold(self.random.uniform(least, most))


def fault(whom: str) -> Callable[[Fault], Fault]:
    def register(function: Fault) -> Fault:
        FAULTS[f"{whom}.{function.__name__.strip('_')}"] = function
        return function

    return register
