"""Answers with a page of what has a name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

import msgspec
from aiohttp import web
from marshmallow import Schema

from tasksvc.web.answers import Answer
from tasksvc.web.queries import load_query, next_link
from tasksvc.web.schemas.dumps import dump_list


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Item = TypeVar("_Item", bound=_Named)


async def answer_page(
    request: web.Request,
    search: Schema,
    find: Callable[[str, int], Awaitable[Sequence[_Item]]],
    shape: type[msgspec.Struct],
    dump: Callable[[_Item], bytes],
) -> Answer:
    """Answers with a page in the order of the names. `search` reads `limit` and `after`; `find`
    takes the name to begin after, and how many to return at most."""
    query = load_query(search, request)
    limit = query["limit"]
    found = await find(query.get("after", ""), limit + 1)
    page = found[:limit]
    headers = next_link(request, after=page[-1].name) if len(found) > limit else {}
    return Answer(await dump_list(shape, page, dump), headers=headers)
