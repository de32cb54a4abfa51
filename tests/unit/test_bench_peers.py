"""The arithmetic of the bench of peers. No peer has to be installed."""

import pytest
from click import BadParameter

from ops.bench.peers import report
from ops.bench.peers.__main__ import _chosen
from ops.bench.peers.registry import PEERS
from ops.bench.peers.tally import Tally


def found(rate: float, echo_rate: float = 1.0) -> dict:
    return {"rate": rate, "echo_rate": echo_rate, "unexpected": {"status 500": 2}}


def test_a_ratio_is_to_the_echo_before_it():
    rounds = [
        {"echo": {"creates-0": found(100)}, "saq": {"drain": found(20, 100)}},
        {"echo": {"creates-0": found(10)}, "saq": {"drain": found(4, 10)}},
        {"echo": {"creates-0": found(50)}},  # it failed before
    ]

    drain = report.summary(rounds)["saq"]["drain"]

    assert (drain["lowest"], drain["highest"]) == (0.2, 0.4)
    assert drain["ratio"] == pytest.approx(0.3)
    assert drain["rate"] == 12
    assert report.echo_rates(rounds) == {"rate": 50, "lowest": 10, "highest": 100}
    assert report.unexpected(rounds)["saq, drain: status 500"] == 4


def test_what_failed_stands_in_the_table():
    results = {
        "summary": {},
        "echo": {"rate": 3.0, "lowest": 2.0, "highest": 4.0},
        "failed": {"bullmq": "not installed: there is no npm on this machine"},
        "versions": {},
        "machine": {"cores": 2},
        "unexpected": {},
    }

    rows = [line for line in report.table(results).splitlines() if line.startswith("| BullMQ")]

    assert "no npm" in rows[0]


def test_a_tally_is_read_by_another_process(tmp_path):
    read_by_bench = Tally.create(tmp_path / "tally")
    worker = Tally(tmp_path / "tally")

    for _ in range(3):
        worker.add()

    started_at, count = read_by_bench.read()
    assert count == 3
    assert started_at > 0


def test_chooses_peers_by_name():
    assert [peer.name for peer in _chosen("saq,arq")] == ["arq", "saq"]
    assert _chosen("") == list(PEERS)
    with pytest.raises(BadParameter, match="hangfire"):
        _chosen("hangfire")
