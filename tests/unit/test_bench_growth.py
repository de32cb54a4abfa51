"""The arithmetic of how the cost grows. Nothing is started."""

from ops.bench import finished, growth, growth_report
from ops.bench.shapes import FIGURES, SHAPES

ONE, TWO = (shape.words for shape in SHAPES[:2])


def figures(rate: float) -> dict:
    loads = {name: {"rate": rate, "unexpected": {}} for name in FIGURES}
    echoes = {name: {"rate": 100.0, "unexpected": {}} for _, name in FIGURES.values()}
    beside = {"scrape": {"ms": 2.0}, "memory": {"peak_resident_bytes": 70e6}}
    return {**loads, **echoes, **beside}


ROUNDS = [
    {ONE: figures(80), TWO: figures(76)},
    {ONE: figures(50), TWO: figures(50)},
    {ONE: figures(90)},  # the other failed
]

BESIDE = {
    "rounds": {
        name: [
            {finished.EMPTY: {"rate": 80.0}, finished.GROWN: {"rate": 76.0}},
            {finished.EMPTY: {"rate": 50.0}, finished.GROWN: {"rate": 50.0}},
        ]
        for name in FIGURES
    },
    "scrape_ms": {finished.EMPTY: 2.0, finished.GROWN: 2.5},
    "peak_resident_bytes": {finished.EMPTY: 70e6, finished.GROWN: 71e6},
}


def test_a_shape_is_measured_beside_its_own_echo():
    found = growth.summary(ROUNDS)

    creates = found[ONE]["creates"]
    assert (creates["lowest"], creates["ratio"], creates["highest"]) == (0.5, 0.8, 0.9)
    assert found[ONE]["peak_resident_bytes"] == 70e6
    assert found.keys() == {ONE, TWO}


def test_finished_tasks_are_compared_within_a_round():
    found = growth.beside_empty({"beside_empty": BESIDE})["drain"]

    assert (found["lowest"], found["highest"]) == (0.95, 1.0)


def test_what_failed_stands_below_the_tables():
    drain = {"rate": 300.0, "ratio": 3.0}
    results = {
        "finished": 1000,
        "summary": growth.summary(ROUNDS),
        "beside_empty": BESIDE,
        "many": {growth.DRAIN: drain},
        "failed": {growth.RUNNING: "never running"},
        "rounds": ROUNDS,
    }

    text = growth_report.tables(results)

    assert "| 2 processes | **0.63**" in text
    assert "| 1,000 finished tasks | ratio to the empty table, median (spread) |" in text
    assert "| a scrape | 2.5 ms, empty 2.0 ms |" in text
    assert "| drain | **0.97** (0.95–1.00) |" in text
    assert "| drain of 100,000 | **3.00** of the echo's creates, 300 a second |" in text
    assert text.endswith("FAILED: 10,000 running sleeps: never running")


def test_tables_of_nothing_but_failures():
    results = {
        "finished": 1000,
        "summary": growth.summary([{}]),
        "beside_empty": None,
        "many": {},
        "failed": {ONE: "did not start"},
        "rounds": [{}],
    }

    assert "FAILED" in growth_report.tables(results)


def test_loads_are_those_that_were_answered():
    names = {name for each in growth.loads({"rounds": ROUNDS}) for name in each}

    assert f"{ONE}, creates" in names
    assert not any("memory" in name for name in names)
