"""The arithmetic of how the cost grows. Nothing is started."""

from ops.bench import growth, growth_report
from ops.bench.shapes import EMPTY, FIGURES, GROWN, Shape


def figures(rate: float) -> dict:
    loads = {name: {"rate": rate, "unexpected": {}} for name in FIGURES}
    echoes = {name: {"rate": 100.0, "unexpected": {}} for _, name in FIGURES.values()}
    beside = {"scrape": {"ms": 2.0}, "memory": {"peak_resident_bytes": 70e6}}
    return {**loads, **echoes, **beside}


ROUNDS = [
    {EMPTY: figures(80), GROWN: figures(76)},
    {EMPTY: figures(50), GROWN: figures(50)},
    {EMPTY: figures(90)},  # the other failed
]


def test_a_shape_is_measured_beside_its_own_echo():
    found = growth.summary(ROUNDS)

    creates = found[EMPTY]["creates"]
    assert (creates["lowest"], creates["ratio"], creates["highest"]) == (0.5, 0.8, 0.9)
    assert found[EMPTY]["peak_resident_bytes"] == 70e6
    assert found.keys() == {EMPTY, GROWN}


def test_finished_tasks_are_compared_within_a_round():
    found = growth.beside_empty(ROUNDS)["drain"]

    assert (found["lowest"], found["highest"]) == (0.95, 1.0)


def test_what_failed_stands_below_the_tables():
    drain = {"rate": 300.0, "ratio": 3.0}
    results = {
        "finished": 1000,
        "summary": growth.summary(ROUNDS),
        "beside_empty": growth.beside_empty(ROUNDS),
        "many": {growth.DRAIN: drain},
        "failed": {growth.RUNNING: "never running"},
        "rounds": ROUNDS,
    }

    text = growth_report.tables(results)

    assert "| 1,000 finished tasks in the table | **0.63**" in text
    assert "| drain | **0.97** (0.95–1.00) |" in text
    assert "| drain of 100,000 | **3.00** of the echo's creates, 300 a second |" in text
    assert text.endswith("FAILED: 10,000 running sleeps: never running")


def test_tables_of_nothing_but_failures():
    results = {
        "finished": 1000,
        "summary": growth.summary([{}]),
        "beside_empty": growth.beside_empty([{}]),
        "many": {},
        "failed": {EMPTY: "did not start"},
        "rounds": [{}],
    }

    assert "FAILED" in growth_report.tables(results)


def test_loads_are_those_that_were_answered():
    names = {name for each in growth.loads({"rounds": ROUNDS}) for name in each}

    assert f"{EMPTY}, creates" in names
    assert not any("memory" in name for name in names)


def test_only_the_grown_shape_has_the_grown_table():
    assert Shape("x").database != Shape("x", is_grown=True).database
