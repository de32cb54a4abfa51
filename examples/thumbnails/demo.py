"""`make example`: the service with the three handlers, and some pictures to work on."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image
from thumbnails import name_of_thumbnail

from tasksvc.testing import run_service

PICTURES = Path(os.environ.get("PICTURES_DIR", Path(__file__).parent / "pictures"))


def main() -> None:
    with (
        TemporaryDirectory() as folder,
        website(folder) as site,
        run_service("thumbnails", PICTURES_DIR=PICTURES) as service,
    ):
        print(f"Serving on {service.url}")
        urls = [f"{site}/{name}" for name in [*draw(Path(folder)), "gone.png"]]
        fetches = [service.create(url, kind="fetch") for url in urls]
        fetched = [show(service.wait(task["id"])) for task in fetches]
        pictures = [task["result"]["picture"] for task in fetched if "result" in task]
        # It is created first, and tries again until the thumbnails are there.
        wanted = json.dumps([name_of_thumbnail(picture) for picture in pictures])
        tasks = [service.create(wanted, kind="contact-sheet")]
        tasks += [service.create(picture, kind="thumbnail") for picture in pictures]
        sheet, *_ = [show(service.wait(task["id"])) for task in tasks]
    print(f"Look at {PICTURES / sheet['result']['sheet']}")


def show(task: dict[str, Any]) -> dict[str, Any]:
    """Prints what has become of the task, and gives it back."""
    came_to = task.get("result") or task.get("error")
    print(f"{task['kind']:14}{task['status']:10}  {json.dumps(came_to)}")
    return task


def draw(folder: Path) -> list[str]:
    """Draws some pictures; their names."""
    drawn = {
        "mandelbrot.png": Image.effect_mandelbrot((1200, 800), (-2.2, -1.0, 0.8, 1.0), 100),
        "noise.png": Image.effect_noise((800, 800), 60),
        "radial.png": Image.radial_gradient("L").resize((900, 600)),
        "linear.png": Image.linear_gradient("L").resize((600, 900)),
        "teal.png": Image.new("RGB", (640, 480), "teal"),
    }
    for name, picture in drawn.items():
        picture.save(folder / name)
    return list(drawn)


class Files(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """The demo speaks for itself."""


@contextmanager
def website(folder: str) -> Iterator[str]:
    """Serves the folder on this machine; its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


if __name__ == "__main__":
    main()
