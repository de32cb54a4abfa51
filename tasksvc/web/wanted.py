"""Cancels reads whose client is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from aiohttp import web

from tasksvc.domain.errors import Overloaded
from tasksvc.web.connection import Connection

_Result = TypeVar("_Result")


async def while_wanted(request: web.Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of the work. It is canceled when the client is gone: its connection is closed, or
    the client closed its side of it a second ago. So it must change nothing.

    Raises Overloaded for work that was canceled; a client that still reads may ask again.
    """
    connection = request.protocol
    if not isinstance(connection, Connection):
        return await work  # another server, such as that of aiohttp's test client
    task = asyncio.create_task(work)
    connection.when_gone(task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            raise  # the service stops
        raise Overloaded from None
    finally:
        connection.when_gone(None)
