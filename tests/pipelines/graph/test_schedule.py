"""What runs when: the longest path first, wide and measuring tasks, failure, and the wall time that follows."""

from pipelines.graph.schedule import Schedule, remaining_paths, simulate
from pipelines.runner.resources import Resources
from tests.pipelines.graph.hand_made import TWO_CORES, graph_of

# Two trainings, a merge of both, and what hangs on each.
TASKS = {
    "base": (10.0, []), "short": (1.0, ["base"]), "long": (5.0, ["base"]), "look": (1.0, ["short"]),
    "merge": (2.0, ["short", "long"]), "evaluate": (4.0, ["merge"]),
}  # fmt: skip


def names(schedule: Schedule, keys: dict[str, str]) -> list[str]:
    """All that can start now, in order."""
    started = []
    while task := schedule.start_next():
        started.append(task.label)
    return started


def test_the_longest_remaining_path_is_that_of_the_chain_behind():
    graph, keys = graph_of(TASKS)
    paths = remaining_paths(graph, {})
    assert {name: paths[key] for name, key in keys.items()} == {
        "base": 21, "short": 7, "long": 11, "look": 1, "merge": 6, "evaluate": 4,
    }  # fmt: skip


def test_tasks_start_when_their_inputs_stand_the_longest_path_first():
    graph, keys = graph_of(TASKS)
    schedule = Schedule(graph, Resources(cores=1, memory_gb=1))
    order = []
    while not schedule.finished:
        (name,) = names(schedule, keys)
        order.append(name)
        schedule.end(keys[name])
    assert order == ["base", "long", "short", "merge", "evaluate", "look"]


def test_a_schedule_takes_the_critical_path_on_enough_cores_and_the_sum_on_one():
    graph, _ = graph_of(TASKS)
    assert simulate(graph, Resources(cores=8, memory_gb=1)) == 21
    assert simulate(graph, Resources(cores=1, memory_gb=1)) == 23
    assert simulate(graph, TWO_CORES) == 21  # `look` beside `merge`


def test_what_is_there_takes_no_time_and_what_runs_only_what_is_left_of_it():
    graph, keys = graph_of(TASKS, there=["base", "short"])
    assert simulate(graph, TWO_CORES) == 11
    assert simulate(graph, TWO_CORES, running={keys["long"]: 0.5}) == 6.5
    assert simulate(graph, TWO_CORES, seconds={keys["long"]: 0.0}) == 6


def test_a_wide_task_is_not_held_up_by_narrow_ones():
    tasks = {"a": (1.0, []), "b": (3.0, []), "wide": (9.0, []), "c": (1.0, [])}
    graph, keys = graph_of(tasks, {"wide": Resources(cores=2), "b": Resources(cores=1)})
    schedule = Schedule(graph, TWO_CORES)
    assert names(schedule, keys) == ["wide"]
    schedule.end(keys["wide"])
    assert names(schedule, keys) == ["b", "a"]


def test_what_measures_runs_last_alone_and_on_all_cores():
    tasks = {"measure": (90.0, []), "a": (1.0, []), "b": (2.0, ["a"])}
    graph, keys = graph_of(tasks, {"measure": Resources(cores=1, exclusive=True)})
    schedule = Schedule(graph, TWO_CORES)
    assert names(schedule, keys) == ["a"]
    schedule.end(keys["a"])
    assert names(schedule, keys) == ["b"]
    schedule.end(keys["b"])
    assert names(schedule, keys) == ["measure"] and schedule.running[keys["measure"]].cores == 2
    assert simulate(graph, TWO_CORES) == 93


def test_tasks_share_the_memory_and_gpus_that_there_are():
    big = Resources(memory_gb=6)
    graph, keys = graph_of({"a": (1.0, []), "b": (1.0, [])}, {"a": big, "b": big})
    assert names(Schedule(graph, TWO_CORES), keys) == ["a"]
    on_gpu = Resources(gpus=1, gpu_memory_gb=6)
    graph, keys = graph_of({"a": (1.0, []), "b": (1.0, [])}, {"a": on_gpu, "b": on_gpu})
    assert names(Schedule(graph, Resources(4, 1, 10, 80)), keys) == ["a"]
    assert names(Schedule(graph, Resources(4, 2, 10, 80)), keys) == ["a", "b"]
    assert names(Schedule(graph, TWO_CORES), keys) == ["a"]  # without GPUs both need host memory: 12 of 10 GB


def test_tasks_are_placed_on_nodes_and_what_spans_several_waits_for_as_many():
    tasks = {"wide": (9.0, []), "a": (5.0, []), "b": (5.0, []), "both": (3.0, ["a"])}
    graph, keys = graph_of(tasks, {"wide": Resources(cores=2), "both": Resources(cores=1, nodes=2)})
    schedule = Schedule(graph, Resources(cores=2, memory_gb=1, nodes=2))
    assert names(schedule, keys) == ["wide", "a", "b"]  # two cores of the first node, one and one of the second
    schedule.end(keys["a"])
    assert names(schedule, keys) == []
    schedule.end(keys["wide"])
    assert names(schedule, keys) == ["both"]
    assert simulate(graph, Resources(cores=2, memory_gb=1, nodes=2)) == 12
    assert "spans 2 nodes" in graph.tasks[keys["both"]].resources.lacking(TWO_CORES)


def test_a_failure_gives_up_what_is_behind_it_and_nothing_else():
    graph, keys = graph_of(TASKS, there=["base"])
    schedule = Schedule(graph, TWO_CORES)
    assert names(schedule, keys) == ["long", "short"]
    assert [task.label for task in schedule.fail(keys["long"], graph)] == ["merge", "evaluate"]
    schedule.end(keys["short"])
    assert names(schedule, keys) == ["look"]
    schedule.end(keys["look"])
    assert schedule.finished
