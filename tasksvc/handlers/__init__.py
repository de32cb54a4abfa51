"""What tasks do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from tasksvc.domain.task import Claim

Handler = Callable[[Claim], Awaitable[Any]]
"""What a task does. To return is to complete it, with what it returns, as JSON, as its result; to
raise is a failure, with another attempt if one is left. It may be called more than once for a task:
`claim.id` is the key to make effects idempotent, `claim.attempt` the token to fence them."""
