"""Where the peers live: an environment for each, since some want what others refuse.

arq wants redis-py below 6, Celery's from 6.4 on, our own from 8 on: no one environment holds them.
Those of Node share a folder, with a Node from npm that is new enough for all.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from ops.bench.children import ROOT, BenchError
from ops.bench.peers.registry import NODE_NEEDS, Peer

HOME = ROOT / ".venv-peers"

NODE_HOME = HOME / "node"

_INSTALL_SECONDS = 300.0


def is_installed(peer: Peer) -> bool:
    try:
        return _stamp(peer).read_text() == _wanted(peer)
    except OSError:
        return False


def install(peer: Peer) -> None:
    """Raises BenchError."""
    if is_installed(peer):
        return
    if peer.runtime == "node":
        _install_node()
    else:
        home = HOME / peer.name
        _run(sys.executable, "-m", "venv", "--clear", str(home))
        pip = (str(python(peer)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        _run(*pip, *peer.needs)
    _stamp(peer).write_text(_wanted(peer))


def python(peer: Peer) -> Path:
    return HOME / peer.name / "bin" / "python"


def node() -> Path:
    return NODE_HOME / "node_modules" / ".bin" / "node"


def version(peer: Peer) -> str:
    """Of what is installed."""
    if peer.runtime == "node":
        package = NODE_HOME / "node_modules" / peer.package / "package.json"
        return str(json.loads(package.read_text())["version"])
    program = f"import importlib.metadata as m; print(m.version({peer.package!r}))"
    return _run(str(python(peer)), "-c", program).strip()


def _install_node() -> None:
    if not (npm := shutil.which("npm")):
        raise BenchError("not installed: there is no npm on this machine")
    NODE_HOME.mkdir(parents=True, exist_ok=True)
    (NODE_HOME / "package.json").write_text('{"private": true}\n')
    _run(npm, "install", "--no-audit", "--no-fund", "--loglevel=error", *NODE_NEEDS, cwd=NODE_HOME)


def _stamp(peer: Peer) -> Path:
    return (NODE_HOME if peer.runtime == "node" else HOME / peer.name) / ".installed"


def _wanted(peer: Peer) -> str:
    needs = NODE_NEEDS if peer.runtime == "node" else peer.needs
    return "\n".join((sys.version if peer.runtime == "python" else "", *needs))


def _run(*command: str, cwd: Path = ROOT) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_INSTALL_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"not installed: {error}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise BenchError(f"not installed: {said[-1] if said else command[0]}")
    return done.stdout
