"""ops/ judged by the real Prometheus and its promtool, on the metrics of the running service."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from tests.harness import ROOT, ServiceProcess, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

OPS = ROOT / "ops"

PROMETHEUS_SECONDS = 60.0
"""How long it may take to start, or to have scraped what is asked for."""

# The linter's two objections to the user's own names, which stay as they are.
SEED_NAMES = re.compile(
    r"task_(?:(?:get|create|cancel)_request|(?:create|cancel|processing)_(?:success|fail))_count "
    r'(?:counter metrics should have "_total" suffix'
    r'|non-histogram and non-summary metrics should not have "_count" suffix)'
)


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None and os.environ.get("TASKSVC_NO_PROMETHEUS") == "1":
        pytest.skip(f"there is no {name}, and TASKSVC_NO_PROMETHEUS=1")
    assert found, (
        f"{name} is not on PATH: `apt-get install prometheus` brings it,"
        " TASKSVC_NO_PROMETHEUS=1 leaves these tests out"
    )
    return found


def promtool(*arguments: str | Path, stdin: bytes = b"") -> tuple[int, str]:
    """Its exit code, and all that it says."""
    done = subprocess.run(
        [program("promtool"), *arguments],
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout.decode()


class Prometheus:
    """A real one with our configuration: only the target, the intervals and the paths differ."""

    def __init__(self, folder: Path, port: int, target: str) -> None:
        config = yaml.safe_load((OPS / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
        config["rule_files"] = [str(OPS / name) for name in config["rule_files"]]
        config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.url = f"http://127.0.0.1:{port}/api/v1"
        self.output = folder / "prometheus.txt"
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [
                    program("prometheus"),
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                    "--log.level=warn",
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def ask(self, path: str, **parameters: str) -> Any:
        try:
            with urlopen(f"{self.url}/{path}?{urlencode(parameters)}", timeout=15) as answer:
                return json.load(answer)["data"]
        except HTTPError as error:
            with error:
                raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from None

    def has_data(self, expr: str) -> bool:
        """Whether the expression has a value that is a number."""
        result = self.ask("query", query=expr)["result"]
        return any(not math.isnan(float(row["value"][1])) for row in result)

    def has_scraped(self) -> bool:
        assert self.process.poll() is None, self.output.read_text()
        try:
            return self.has_data("up == 1")
        except (AssertionError, URLError):  # it still starts
            return False

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)


@pytest.fixture
async def prometheus(
    service: ServiceProcess, unused_tcp_port: int, tmp_path: Path
) -> AsyncIterator[Prometheus]:
    prometheus = Prometheus(tmp_path, unused_tcp_port, f"127.0.0.1:{service.port}")
    try:
        await eventually(prometheus.has_scraped, PROMETHEUS_SECONDS)
        yield prometheus
    finally:
        prometheus.stop()


def make_traffic(service: ServiceProcess) -> None:
    """A little of everything that is counted."""
    task = service.create()["id"]
    service.task(task)
    for _ in range(2):  # the second time at the latest it is too late
        assert service.request("PATCH", f"/task/{task}/cancel")[0] in (200, 400)
    service.create(priority="high")
    json_headers = {"Content-Type": "application/json"}
    assert service.request("POST", "/task", b"{}", json_headers)[0] == 422
    assert service.get("/health")[0] == 200


def panel_queries() -> list[str]:
    dashboard = json.loads((OPS / "grafana/dashboards/task_processing_system.json").read_text())
    return [
        target["expr"].replace("$__rate_interval", "1m")  # Grafana fills it in
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]


def alert_queries() -> list[str]:
    """What each alert looks at, without the bound."""
    groups = yaml.safe_load((OPS / "alerts.yml").read_text())["groups"]
    exprs = [rule["expr"] for group in groups for rule in group["rules"]]
    bare = [re.sub(r"\s(?:==|>) [\d.* ]+$", "", expr) for expr in exprs]
    assert not set(bare) & set(exprs)
    # No answer was a 5xx; another class of codes shows that the query is right.
    return [expr.replace('code=~"5.."', 'code=~"2.."') for expr in bare]


async def test_every_panel_and_every_alert_gets_data_from_prometheus(
    service: ServiceProcess, prometheus: Prometheus
) -> None:
    unanswered = panel_queries() + alert_queries()

    def all_answered() -> bool:
        make_traffic(service)
        unanswered[:] = [expr for expr in unanswered if not prometheus.has_data(expr)]
        return not unanswered

    try:
        await eventually(all_answered, PROMETHEUS_SECONDS)
    except AssertionError as error:
        pytest.fail("\n".join([str(error), "No data for:", *unanswered]))


async def test_prometheus_evaluates_every_alert(prometheus: Prometheus) -> None:
    def health() -> set[str]:
        return {
            rule["health"] for group in prometheus.ask("rules")["groups"] for rule in group["rules"]
        }

    await eventually(lambda: "unknown" not in health(), PROMETHEUS_SECONDS)

    assert health() == {"ok"}


def test_promtool_accepts_the_live_metrics(service: ServiceProcess) -> None:
    make_traffic(service)
    _, _, body = service.get("/metrics")

    _, said = promtool("check", "metrics", stdin=body)

    assert [line for line in said.splitlines() if not SEED_NAMES.fullmatch(line)] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", OPS / "prometheus.yml"),
        ("check", "rules", OPS / "alerts.yml"),
        ("test", "rules", OPS / "alerts_test.yml"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_promtool_accepts(arguments: tuple[str | Path, ...]) -> None:
    code, said = promtool(*arguments)

    assert code == 0, said
