"""Pictures are fetched, made small, and laid out on one sheet: three handlers, one of each way to
run. They share a folder, and know pictures by their names in it."""

from __future__ import annotations

import asyncio
import io
import json
import os
from pathlib import Path
from typing import Any

import aiohttp
from PIL import Image

from tasksvc import Context, Permanent, Retry, SyncContext, handler

THUMBNAIL_PIXELS = 160
COLUMNS = 3
MAX_BYTES = 20_000_000


@handler("fetch", timeout_seconds=60, max_attempts=5)
async def fetch(content: str, ctx: Context) -> dict[str, Any]:
    """The content is a URL. It waits for the network: on the event loop."""
    async with aiohttp.ClientSession() as session, session.get(content) as answer:
        if answer.status in (429, 503):
            raise Retry(f"It answered {answer.status}.", after_seconds=_wait(answer))
        if 400 <= answer.status < 500:
            raise Permanent(f"It answered {answer.status}.")
        answer.raise_for_status()
        data = bytearray()
        async for chunk in answer.content.iter_chunked(65_536):
            data += chunk
            if len(data) > MAX_BYTES:
                raise Permanent(f"It has more than {MAX_BYTES} bytes.")
            if answer.content_length:
                await ctx.progress(len(data) / answer.content_length, f"{len(data)} bytes")
    # The task's id is the name: another attempt writes the same file.
    picture = f"{ctx.id}.picture"
    await asyncio.to_thread(_write, picture, bytes(data))
    return {"picture": picture, "bytes": len(data)}


@handler("thumbnail", run_in="process", timeout_seconds=30)
def thumbnail(content: str, ctx: SyncContext) -> dict[str, Any]:
    """The content is a picture's name. It holds the CPU, and strangers' bytes may hang or crash
    what decodes them: in a process of its own."""
    try:
        with Image.open(_path(content)) as picture:
            ctx.progress(0.1, f"{picture.width} × {picture.height}")
            small = picture.convert("RGB")
    except FileNotFoundError:
        raise Permanent("There is no such picture.") from None
    except (OSError, Image.DecompressionBombError):
        raise Permanent("It is no picture that can be read.") from None
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    name = name_of_thumbnail(content)
    _write(name, _jpeg(small))
    return {"thumbnail": name, "width": small.width, "height": small.height}


@handler("contact-sheet", max_attempts=100, timeout_seconds=30)
def contact_sheet(content: str, ctx: SyncContext) -> dict[str, Any] | None:
    """The content is a JSON array of thumbnails' names. It waits for disks: in a thread."""
    names = _names(content)
    missing = [name for name in names if not _path(name).exists()]
    if missing:
        raise Retry(f"{len(missing)} of {len(names)} are not there yet.", after_seconds=0.5)
    rows = -(-len(names) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * THUMBNAIL_PIXELS, rows * THUMBNAIL_PIXELS), "white")
    for number, name in enumerate(names):
        if ctx.is_canceled:  # nobody can stop a thread but itself
            return None
        row, column = divmod(number, COLUMNS)
        with Image.open(_path(name)) as small:
            sheet.paste(small, (column * THUMBNAIL_PIXELS, row * THUMBNAIL_PIXELS))
        ctx.progress((number + 1) / len(names), name)
    name = f"{ctx.id}-sheet.jpg"
    _write(name, _jpeg(sheet))
    return {"sheet": name, "pictures": len(names)}


def name_of_thumbnail(picture: str) -> str:
    return f"{Path(picture).stem}-small.jpg"


def _names(content: str) -> list[str]:
    try:
        names = [str(name) for name in json.loads(content)]
    except (TypeError, ValueError):
        names = []
    if not names:
        raise Permanent("The content must be a JSON array of names.")
    return names


def _path(name: str) -> Path:
    """Where the picture of that name is. A name that leads out of the folder is none."""
    if name != Path(name).name:
        raise Permanent("A picture's name has no folders.")
    folder = Path(os.environ.get("PICTURES_DIR", "pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def _write(name: str, data: bytes) -> None:
    unfinished = _path(f"{name}.part")
    unfinished.write_bytes(data)
    unfinished.replace(_path(name))  # whoever sees the file sees all of it


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG")
    return buffer.getvalue()


def _wait(answer: aiohttp.ClientResponse) -> float | None:
    """None leaves it to the usual backoff."""
    seconds = answer.headers.get("Retry-After", "")
    return float(seconds) if seconds.isdecimal() else None
