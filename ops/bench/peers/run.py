"""A peer's process, in the peer's environment: `python -m ops.bench.peers.run NAME VERB`."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from inspect import iscoroutine
from typing import Any


def main(name: str, verb: str, *arguments: str) -> None:
    peer = importlib.import_module(f"ops.bench.peers.{name}")
    if verb == "serve":
        serve(peer.app)
    else:
        done = getattr(peer, verb)(*map(int, arguments))
        if iscoroutine(done):
            import uvloop

            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(done)


def serve(app: Any) -> None:
    import uvicorn

    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
