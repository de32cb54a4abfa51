"""The handlers alone, and all of them together in the service."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from PIL import Image
from thumbnails import contact_sheet, fetch, thumbnail

from tasksvc.testing import ServiceProcess, run_task, run_task_sync


@pytest.fixture(autouse=True)
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the handlers have their pictures, when they run alone."""
    monkeypatch.setenv("PICTURES_DIR", str(tmp_path))
    return tmp_path


def draw(path: Path, width: int = 640, height: int = 480) -> None:
    Image.new("RGB", (width, height), "teal").save(path, "PNG")


class TestFetch:
    @pytest.fixture
    async def site(self, pictures: Path) -> AsyncIterator[str]:
        """Serves what is asked for: a status, or bytes."""

        async def answer(request: web.Request) -> web.Response:
            if status := request.query.get("status"):
                headers = {"Retry-After": request.query.get("after", "")}
                return web.Response(status=int(status), headers=headers)
            return web.Response(body=b"x" * 100_000)

        app = web.Application()
        app.router.add_get("/", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
        await runner.cleanup()

    async def test_what_is_fetched_is_kept_under_the_id_of_the_task(
        self, site: str, pictures: Path
    ) -> None:
        for _ in range(2):  # an attempt that is made again changes nothing
            run = await run_task(fetch, site, id="an-id")

            assert run.result == {"picture": "an-id.picture", "bytes": 100_000}
            assert run.progress[-1] == (1.0, "100000 bytes")
        assert os.listdir(pictures) == ["an-id.picture"]

    async def test_busy_site_is_asked_again_when_it_says(self, site: str) -> None:
        run = await run_task(fetch, f"{site}?status=503&after=60")

        assert (run.status, run.retry_after_seconds) == ("pending", 60)

    @pytest.mark.parametrize(("status", "then"), [(404, "failed"), (500, "pending")])
    async def test_site_that_fails(self, site: str, status: int, then: str) -> None:
        assert (await run_task(fetch, f"{site}?status={status}")).status == then


class TestThumbnail:
    def test_it_fits_and_keeps_its_shape(self, pictures: Path) -> None:
        draw(pictures / "cat.png")

        run = run_task_sync(thumbnail, "cat.png")

        assert run.result == {"thumbnail": "cat-small.jpg", "width": 160, "height": 120}
        with Image.open(pictures / "cat-small.jpg") as small:
            assert small.size == (160, 120)

    @pytest.mark.parametrize("name", ["none.png", "../cat.png", "text.png"])
    def test_what_is_no_picture_is_not_tried_again(self, pictures: Path, name: str) -> None:
        (pictures / "text.png").write_text("no picture")

        run = run_task_sync(thumbnail, name)

        assert run.status == "failed"
        assert run.error is not None
        assert run.error["type"] == "Permanent"


class TestContactSheet:
    def test_pictures_are_laid_out_in_rows(self, pictures: Path) -> None:
        names = [f"{number}.png" for number in range(4)]
        for name in names:
            draw(pictures / name, 160, 120)

        run = run_task_sync(contact_sheet, json.dumps(names), id="an-id")

        assert run.result == {"sheet": "an-id-sheet.jpg", "pictures": 4}
        assert [fraction for fraction, _ in run.progress] == [0.25, 0.5, 0.75, 1.0]
        with Image.open(pictures / "an-id-sheet.jpg") as sheet:
            assert sheet.size == (480, 320)

    def test_it_waits_for_thumbnails_that_are_missing(self, pictures: Path) -> None:
        draw(pictures / "here.png")

        run = run_task_sync(contact_sheet, '["here.png", "missing.png"]')

        assert (run.status, run.retry_after_seconds) == ("pending", 0.5)
        assert run.error is not None
        assert run.error["message"] == "1 of 2 are not there yet."

    @pytest.mark.parametrize("content", ["cat.png", "5", "[]"])
    def test_content_that_will_not_do(self, content: str) -> None:
        assert run_task_sync(contact_sheet, content).status == "failed"


def test_thumbnail_and_sheet_in_the_service(service: ServiceProcess) -> None:
    folder = service.folder / "pictures"
    folder.mkdir()
    sheet = service.create('["cat-small.jpg"]', kind="contact-sheet")
    draw(folder / "cat.png")
    small = service.create("cat.png", kind="thumbnail")

    assert service.wait(small["id"])["result"]["width"] == 160
    final = service.wait(sheet["id"])
    assert final["status"] == "completed"
    assert (folder / final["result"]["sheet"]).exists()
