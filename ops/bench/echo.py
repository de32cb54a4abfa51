"""The reference: a bare aiohttp server that reads the same requests and answers about the same.

It keeps nothing, checks nothing and logs nothing: what a service on this stack can't be faster
than. Its arguments are its port, and the size in bytes of the content that a read answers.
"""

from __future__ import annotations

import sys
from uuid import uuid4

import orjson
import uvloop
from aiohttp import web

TASK = {
    "id": str(uuid4()),
    "content": "",
    "status": "pending",
    "created_at": "2024-10-28T08:04:08.990161Z",
    "updated_at": None,
}

CONTENT = web.AppKey("content", str)


async def create_task(request: web.Request) -> web.Response:
    document = orjson.loads(await request.read())
    return web.Response(
        status=201,
        body=orjson.dumps({**TASK, "content": document["content"]}),
        content_type="application/json",
    )


async def get_task(request: web.Request) -> web.Response:
    """Reads and cancels alike."""
    document = {**TASK, "id": request.match_info["task_id"], "content": request.app[CONTENT]}
    return web.Response(body=orjson.dumps(document), content_type="application/json")


async def health(request: web.Request) -> web.Response:
    return web.Response()


async def create_app(content_bytes: int) -> web.Application:
    app = web.Application()
    app[CONTENT] = "x" * content_bytes
    app.add_routes(
        [
            web.post("/task", create_task),
            web.get("/task/{task_id}", get_task),
            web.patch("/task/{task_id}/cancel", get_task),
            web.get("/health", health),
        ]
    )
    return app


if __name__ == "__main__":
    web.run_app(
        create_app(int(sys.argv[2])),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        access_log=None,
        print=None,
        loop=uvloop.new_event_loop(),
    )
