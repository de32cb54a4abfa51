"""What the clients order: what a handler is to do, and every option of a task."""

from __future__ import annotations

import json
import random
import time
from datetime import UTC, datetime
from typing import Any

from tests.faults.handlers import PROCESS_KIND, THREAD_KIND

NARROW_QUEUE = "narrow"
NARROW_CONCURRENCY = 2
_UNIQUE_KEYS = 5


class Order:
    """One task, as the body of a request has it. What the checker has to know is in its content."""

    def __init__(self, key: str, chance: random.Random) -> None:
        self._chance = chance
        self._options: dict[str, Any] = {}
        self._content: dict[str, Any] = {
            "key": key,
            "seconds": chance.choice([0, 0, 0.02, 0.1, 0.5, 1.5]),
            "then_seconds": chance.choice([0, 0.2, 1]),
        }
        if chance.random() < 0.1:
            self._content |= {"raises": "told to", "until": chance.randint(2, 3)}

    def body(self) -> dict[str, Any]:
        return {"content": json.dumps(self._content), **self._options}

    def with_options(self) -> Order:
        """Some of them, which don't depend on the time."""
        chance = self._chance
        if chance.random() < 0.3:
            self._options["priority"] = chance.choice(["high", "low"])
        if chance.random() < 0.2:
            self._few_attempts()
        where = chance.random()
        if where < 0.15:
            self._options["queue"] = NARROW_QUEUE
            self._content |= {"seconds": chance.choice([0, 0.1, 0.3]), "then_seconds": 0}
        elif where < 0.2:
            self._options["queue"] = "wide"
        kind = chance.random()
        if kind < 0.03:
            self._options["kind"] = PROCESS_KIND
        elif kind < 0.15:
            self._options["kind"] = THREAD_KIND
        elif kind < 0.2:  # not of a process: to start one may take as long
            self._options["timeout_seconds"] = 0.3
            self._content["then_seconds"] = 0
        return self

    def with_times(self) -> Order:
        """Later, or not for ever."""
        now, chance = time.time(), self._chance
        draw = chance.random()
        if draw < 0.2:
            delay = chance.choice([0.1, 0.5, 1.5])
            self._options["delay_seconds"] = delay
            self._content["not_before"] = now + delay
        elif draw < 0.3:
            moment = round(now + chance.choice([-1, 0.3, 1]), 3)
            self._options["run_at"] = datetime.fromtimestamp(moment, UTC).isoformat()
            self._content["not_before"] = moment
        elif draw < 0.4:
            expires_at = datetime.fromtimestamp(now + chance.choice([0.3, 2]), UTC)
            self._options["expires_at"] = expires_at.isoformat()
        return self

    def with_unique_key(self) -> Order:
        self._options["unique_key"] = f"unique-{self._chance.randrange(_UNIQUE_KEYS)}"
        return self

    def among(self, batch: str, size: int) -> Order:
        """One of so many tasks that are created at once."""
        self._content |= {"batch": batch, "size": size}
        return self

    def _few_attempts(self) -> None:
        """Many of these end as failed."""
        chance = self._chance
        self._options["max_attempts"] = chance.randint(1, 4)
        if chance.random() < 0.7:
            error = chance.choice(["RuntimeError", "Retry", "Permanent"])
            self._content |= {"raises": "told to", "until": chance.randint(2, 6), "error": error}
