"""Tasks with all options but those that make them wait: the request, and the handler of their kind.

A service that serves them has this module in TASKSVC_HANDLERS.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from ops.bench.load import CONTENT_BYTES, NUMBER, content, post
from tasksvc.handlers.context import Context
from tasksvc.handlers.kinds import handler

KIND = "bench"


@handler(KIND)
async def nothing(content: str, context: Context) -> None:
    """As much as the handler of a plain task does here."""


def create_with_options() -> str:
    """A request to create one, with a key that is no other request's, however often it is sent."""
    key = f"{uuid4()}-{NUMBER}"
    document = {
        "content": content(CONTENT_BYTES),
        "kind": KIND,
        "priority": "high",
        "queue": "bench",
        "unique_key": key,
        "max_attempts": 5,
        "retry_base_seconds": 1,
        "retry_max_seconds": 60,
        "timeout_seconds": 30,
        "expires_at": (datetime.now(UTC) + timedelta(hours=1)).isoformat(),
    }
    return post(json.dumps(document).encode(), f"Idempotency-Key: {key}")
