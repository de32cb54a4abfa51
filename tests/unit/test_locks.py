"""What is installed and run is exact: locks that fit setup.cfg, and images with a version."""

from __future__ import annotations

import configparser
import re

import pytest
import yaml
from packaging.requirements import Requirement

from tests.harness import ROOT

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
LOCKS = {"app": ["container"], "dev": ["embedded", "dev"]}


def text_of(lock: str) -> str:
    return (ROOT / "ops" / "locks" / f"{lock}.txt").read_text("utf-8")


def locked(lock: str) -> dict[str, list[str]]:
    """Returns the versions of each package in a lock; some have one for each platform."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", text_of(lock), re.MULTILINE):
        found.setdefault(canonical(name), []).append(version)
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(lock: str) -> list[Requirement]:
    """Returns what setup.cfg asks for, on this platform."""
    lines = SETUP["options"]["install_requires"].splitlines()
    for extra in LOCKS[lock]:
        lines += SETUP["options.extras_require"][extra].splitlines()
    found = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return [each for each in found if each.marker is None or each.marker.evaluate()]


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_fits_what_is_asked_for(lock: str) -> None:
    versions = locked(lock)

    for each in wanted(lock):
        found = versions.get(canonical(each.name), [])
        assert any(each.specifier.contains(version) for version in found), (each, "make lock")


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_has_hashes_and_no_address(lock: str) -> None:
    text = text_of(lock)
    packages = re.split(r"\n(?=\S)", text.strip())

    assert all("--hash=sha256:" in each for each in packages)
    assert "://" not in text
    assert "index" not in text


def test_images_have_a_version() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"].values()
    images = [each["image"] for each in services if "build" not in each]
    images += re.findall(r"^FROM (\S+:\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)

    assert len(images) > 4
    assert all(re.search(r":v?\d+(\.\d+)*", each) for each in images), images
