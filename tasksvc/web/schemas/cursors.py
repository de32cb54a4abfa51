"""Cursors: where a page or a step goes on. A client can't make one, or use it for another
search."""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from http import HTTPStatus
from uuid import UUID

import orjson

from tasksvc.domain.task import Filter
from tasksvc.web.problems import Problem

_ID_BYTES = 16
_MARK_BYTES = 14

_CURSOR = re.compile(r"[A-Za-z0-9_-]{40}")
"""All of base64's digits count: each text stands for other bytes."""


class Cursors:
    """Makes them and reads them. All processes have the same secret, and so understand each
    other's."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def dump(self, filter: Filter, before: str) -> str:
        """One that goes on before that id."""
        id = UUID(before).bytes
        return urlsafe_b64encode(id + self._mark(filter, id)).decode()

    def load(self, filter: Filter, cursor: str | None) -> str | None:
        """The id; None without a cursor. Raises Problem, 400, for one of another filter."""
        if cursor is None:
            return None
        if _CURSOR.fullmatch(cursor):
            data = urlsafe_b64decode(cursor)
            id, mark = data[:_ID_BYTES], data[_ID_BYTES:]
            if hmac.compare_digest(mark, self._mark(filter, id)):
                return str(UUID(bytes=id))
        raise Problem(HTTPStatus.BAD_REQUEST, "The cursor is not one of this search.")

    def _mark(self, filter: Filter, id: bytes) -> bytes:
        return hmac.digest(self._secret, id + orjson.dumps(list(filter)), sha256)[:_MARK_BYTES]
