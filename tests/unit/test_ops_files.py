"""The files of ops/ agree with the service: the same metrics, ports and times."""

import configparser
import json
import re
from functools import cache
from itertools import combinations
from pathlib import Path

import dotenv
import pytest
import yaml

from tasksvc.metrics import Metrics
from tasksvc.settings import Settings

ROOT = Path(__file__).parents[2]
OPS = ROOT / "ops"

SEED_METRICS = {
    "task_status",
    "task_get_request_count",
    "task_create_request_count",
    "task_create_success_count",
    "task_create_fail_count",
    "task_cancel_request_count",
    "task_cancel_success_count",
    "task_cancel_fail_count",
    "task_processing_duration_bucket",
    "task_processing_success_count",
    "task_processing_fail_count",
}


def load(path):
    return yaml.safe_load((ROOT / path).read_text())


def load_dashboard():
    return json.loads((OPS / "grafana/dashboards/task_processing_system.json").read_text())


def panels():
    return [panel for panel in load_dashboard()["panels"] if panel["type"] != "row"]


def alerts():
    return [rule for group in load("ops/alerts.yml")["groups"] for rule in group["rules"]]


def metrics_in(expr):
    return set(re.findall(r"\b(?:task|tasksvc|process)_\w+", re.sub(r'"[^"]*"', "", expr)))


@cache
def declared_metrics():
    body, _ = Metrics("1.2.3").render([])
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", body.decode(), re.MULTILINE):
        if kind == "histogram":
            names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")}
        else:
            names.add(name)
    return names


def seconds(duration):
    return int(re.fullmatch(r"(\d+)s", duration)[1])


def supervised():
    config = configparser.RawConfigParser()
    config.read(OPS / "supervisord.conf")
    return config["program:tasksvc"]


# Monitoring


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_panel_asks_for_what_the_service_declares(panel):
    asked = set().union(*(metrics_in(target["expr"]) for target in panel["targets"]))

    assert asked <= declared_metrics()
    assert asked or "up{" in panel["targets"][0]["expr"]


def test_dashboard_shows_every_metric_of_the_contract():
    shown = set().union(*(metrics_in(t["expr"]) for panel in panels() for t in panel["targets"]))

    assert shown >= SEED_METRICS


def test_dashboard_panels_have_their_own_ids_and_places():
    everything = load_dashboard()["panels"]
    ids = [panel["id"] for panel in everything]

    assert len(ids) == len(set(ids))
    for a, b in combinations([panel["gridPos"] for panel in everything], 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, (a, b)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in everything)


def test_grafana_is_provisioned_with_the_dashboard_and_its_datasource():
    (datasource,) = load("ops/grafana/provisioning/datasources/datasource.yml")["datasources"]
    (provider,) = load("ops/grafana/provisioning/dashboards/dashboards.yml")["providers"]
    mounted = load("docker-compose.yml")["services"]["grafana"]["volumes"]
    asked = {of["datasource"]["uid"] for panel in panels() for of in [panel, *panel["targets"]]}

    assert asked == {datasource["uid"]}
    assert datasource["url"] == "http://prometheus:9090"
    assert f"./ops/grafana/dashboards:{provider['options']['path']}:ro" in mounted
    assert "./ops/grafana/provisioning:/etc/grafana/provisioning:ro" in mounted


def test_prometheus_scrapes_the_service_of_the_compose_file():
    config = load("ops/prometheus.yml")
    (scrape,) = config["scrape_configs"]

    assert scrape["job_name"] == "tasksvc"
    assert scrape["static_configs"] == [{"targets": ["app:8000"]}]
    assert config["global"]["scrape_interval"] == "15s"
    assert config["rule_files"] == ["alerts.yml"]


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_alert_is_complete_documented_and_tested(alert):
    asked = metrics_in(alert["expr"])

    assert asked <= declared_metrics()
    assert asked or alert["expr"].startswith("up{")
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert set(alert["annotations"]) == {"summary", "description", "action"}
    assert f"| `{alert['alert']}` |" in (ROOT / "docs/operations.md").read_text()
    assert alert["alert"] in (OPS / "alerts_test.yml").read_text()


# Containers


def test_compose_has_the_services_their_ports_and_their_volumes():
    compose = load("docker-compose.yml")
    services = compose["services"]
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    named = {
        volume.split(":")[0]
        for service in services.values()
        for volume in service.get("volumes", [])
        if not volume.startswith("./")
    }

    assert set(services) == {"app", "postgres", "redis", "prometheus", "grafana", "test"}
    assert published == {
        "app": ["${PUBLISH_ADDRESS:-127.0.0.1}:8000:8000"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
    }
    assert named == set(compose["volumes"])
    assert services["test"]["profiles"] == ["test"]


def test_compose_mounts_files_that_exist():
    for service in load("docker-compose.yml")["services"].values():
        for volume in service.get("volumes", []):
            if volume.startswith("./"):
                assert (ROOT / volume.split(":")[0]).exists(), volume


def test_compose_checks_the_health_of_every_service():
    services = load("docker-compose.yml")["services"]
    by_themselves = {name for name, service in services.items() if "healthcheck" in service}

    assert by_themselves == set(services) - {"app", "test"}
    assert "HEALTHCHECK" in (ROOT / "Dockerfile").read_text()


def test_every_container_drops_its_capabilities():
    for name, service in load("docker-compose.yml")["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_container_of_the_tests_buries_orphans():
    assert load("docker-compose.yml")["services"]["test"]["init"] is True


def test_temporary_files_of_handlers_stay_out_of_the_volume():
    app = load("docker-compose.yml")["services"]["app"]

    assert app["read_only"] is True
    assert app["tmpfs"] == ["/tmp"]
    assert "docker run --read-only --tmpfs /tmp " in (ROOT / "docs/operations.md").read_text()


def test_compose_keeps_nothing_of_redis():
    redis = load("docker-compose.yml")["services"]["redis"]

    assert redis["command"][1:3] == ["--save", ""]
    assert "--appendonly" not in redis["command"]
    assert redis["tmpfs"] == ["/data"]
    assert "volumes" not in redis


def test_who_stops_the_service_waits_longer_than_it_needs(monkeypatch):
    monkeypatch.delenv("TASKSVC_GRACE_SECONDS", raising=False)
    grace = Settings.from_env().grace_seconds
    app = load("docker-compose.yml")["services"]["app"]

    assert grace < int(supervised()["stopwaitsecs"]) < seconds(app["stop_grace_period"])
    assert supervised()["stopsignal"] == "TERM"


@pytest.mark.parametrize("name", [".env.dev", ".env.test"])
def test_env_file_names_what_compose_serves(name, monkeypatch):
    values = dotenv.dotenv_values(ROOT / name)
    services = load("docker-compose.yml")["services"]
    postgres = services["postgres"]["environment"]

    for variable, value in values.items():
        monkeypatch.setenv(variable, value)
    settings = Settings.from_env()

    assert set(values) == {
        "APP_ENV",
        "LOG_LEVEL",
        "LOG_FILE_PATH",
        "DATABASE_URL",
        "REDIS_HOST",
        "TASK_CONSUMER_WORKERS",
    }
    assert values["DATABASE_URL"].startswith("postgresql+asyncpg://")
    assert settings.database_url == "postgresql://{}:{}@postgres:5432/{}".format(
        postgres["POSTGRES_USER"], postgres["POSTGRES_PASSWORD"], postgres["POSTGRES_DB"]
    )
    assert values["REDIS_HOST"] in services


def test_container_of_the_tests_has_what_make_test_installs():
    recipe = (ROOT / "Makefile").read_text().partition("\ntest-tools:")[2].partition("\n\n")[0]
    image = (ROOT / "Dockerfile").read_text().partition(" AS test\n")[2].partition("\nUSER ")[0]
    (wanted,) = re.findall(r"--no-install-recommends ([-\w ]+) >", recipe)
    (installed,) = re.findall(r"--no-install-recommends ([-\w ]+) \\", image)

    assert set(wanted.split()) <= set(installed.split())


def test_compose_of_the_example_changes_the_image_of_the_service_alone():
    (name,) = load("examples/thumbnails/docker-compose.yml")["services"]
    app = load("examples/thumbnails/docker-compose.yml")["services"][name]
    base = load("docker-compose.yml")["services"][name]
    dockerfile = (ROOT / app["build"]["context"] / "Dockerfile").read_text()

    assert set(app) == {"build", "image"}
    assert f"FROM {base['image']} AS {base['build']['target']}" in dockerfile
