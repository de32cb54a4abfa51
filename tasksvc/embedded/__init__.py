"""A private PostgreSQL and Redis with no set-up, for a laptop, a demo and the tests.

Each lives in a state folder, belongs to the process that started it, and ends with it.
"""

from tasksvc.embedded.errors import EmbeddedError
from tasksvc.embedded.postgres import EmbeddedPostgres
from tasksvc.embedded.redis import EmbeddedRedis

__all__ = ["EmbeddedError", "EmbeddedPostgres", "EmbeddedRedis"]
