"""How far a run is, and how the time left follows what was measured."""

import pytest

from pipelines.engines.unit import FAILED, MADE, SKIPPED, Result
from pipelines.graph.progress import Tally
from tests.pipelines.graph.hand_made import TWO_CORES, graph_of

CHAIN = {"a": (10.0, []), "b": (10.0, ["a"]), "c": (10.0, ["b"]), "d": (10.0, ["a"])}


def test_time_left_is_the_schedule_to_come_corrected_by_what_was_measured():
    graph, keys = graph_of(CHAIN)
    now = 0.0
    tally = Tally(graph, TWO_CORES, lambda: now)
    assert tally.seconds_left() == 30
    tally.started(graph.tasks[keys["a"]])
    now = 4.0
    assert tally.seconds_left() == 26
    now = 20.0  # twice as long as was thought
    tally.ended_task(graph.tasks[keys["a"]], Result(keys["a"], MADE, 20.0))
    assert tally.seconds_left() == pytest.approx(40) and tally.done == 1
    tally.started(graph.tasks[keys["b"]])
    tally.started(graph.tasks[keys["d"]])
    assert tally.line() == "1 of 4 stages done, about 40 s left, beside trace b"


def test_what_failed_and_what_is_behind_it_take_no_more_time():
    graph, keys = graph_of(CHAIN)
    tally = Tally(graph, TWO_CORES, lambda: 0.0)
    for name, status in (("a", MADE), ("b", FAILED), ("c", SKIPPED)):
        tally.ended_task(graph.tasks[keys[name]], Result(keys[name], status, 10.0))
    assert tally.seconds_left() == 10 and tally.done == 1
