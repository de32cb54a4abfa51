"""What `make example` starts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tasksvc.testing.process import clean_environment
from tests.harness import ROOT


@pytest.mark.slow
def test_demo_shows_what_its_tasks_came_to_and_stops(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "thumbnails" / "demo.py"],
        env=clean_environment(PYTHONPATH=ROOT, PICTURES_DIR=tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    shown = re.findall(r"^(fetch|thumbnail|contact-sheet) +(\w+) ", done.stdout, re.MULTILINE)
    assert sorted(shown) == [
        ("contact-sheet", "completed"),
        *[("fetch", "completed")] * 5,
        ("fetch", "failed"),
        *[("thumbnail", "completed")] * 5,
    ]
    assert Path(done.stdout.splitlines()[-1].removeprefix("Look at ")).exists()
