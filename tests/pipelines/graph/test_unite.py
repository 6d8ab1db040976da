"""The cells of an experiment as one graph: every distinct stage once, with the rows that need it and what it takes."""

import collections
import copy
import dataclasses

import pytest

from pipelines.graph.graph import Graph
from pipelines.graph.unite import unite
from pipelines.runner.resources import Resources
from tests.pipelines.composing import hydra_conf, sweep_of  # noqa: F401

LAPTOP = Resources(cores=2, memory_gb=24)


def graph_of(experiment: str, scale: str, outputs: str, machine: Resources = LAPTOP) -> Graph:
    configs = [config for _, config in sweep_of(experiment, scale)]
    return unite([dataclasses.replace(config, outputs=outputs) for config in configs], machine)


def test_table1s_fourteen_cells_are_44_stages_each_once_after_its_inputs(tmp_path):
    graph = graph_of("table1", "tiny", str(tmp_path))
    counts = collections.Counter(task.stage for task in graph.tasks.values())
    assert counts == {
        "world": 1, "pretrain": 1, "finetune": 2, "sample": 2, "merge": 6, "calibrate": 6, "evaluate": 14,
        "diagnose": 12,
    }  # fmt: skip
    assert len(graph.rows) == 14 and [row.left_out for row in graph.rows if row.left_out] == ["not a row of table1"]
    seen: set[str] = set()
    for key, task in graph.tasks.items():
        assert seen.issuperset(task.needs), f"{task.name} stands before what it needs"
        seen.add(key)
    assert {task.stage: len(task.rows) for task in graph.tasks.values() if task.stage in ("world", "evaluate")} == {
        "world": 13, "evaluate": 1,
    }  # fmt: skip
    (ties,) = [task for task in graph.tasks.values() if task.label == "tiny-ties" and task.stage == "merge"]
    assert [graph.rows[row].name for row in ties.rows] == ["TIES-Merging (tiny)", "TIES-Merging + HARC (tiny)"]


def test_what_stands_behind_a_stage_is_all_that_needs_it(tmp_path):
    graph = graph_of("table1", "tiny", str(tmp_path))
    (merge,) = [key for key, task in graph.tasks.items() if task.name.startswith("merge-tiny-wudi")]
    behind = sorted(f"{graph.tasks[key].stage} {graph.tasks[key].label}" for key in graph.behind([merge]))
    assert behind == [
        "calibrate tiny-wudi-harc", "diagnose tiny-wudi", "diagnose tiny-wudi-harc", "evaluate tiny-wudi",
        "evaluate tiny-wudi-harc",
    ]  # fmt: skip


def test_only_what_measures_cost_has_the_machine_to_itself(tmp_path):
    graph = graph_of("table3", "tiny", str(tmp_path))
    assert {task.stage for task in graph.tasks.values() if task.resources.exclusive} == {"cost"}


def test_a_scale_may_say_what_a_stage_takes(tmp_path):
    config = copy.deepcopy(sweep_of("table1", "tiny")[0][1])
    config.scale.resources.pretrain.cores = 2
    graph = unite([dataclasses.replace(config, outputs=str(tmp_path))], LAPTOP)
    cores = {task.stage: task.resources.cores for task in graph.tasks.values()}
    assert cores["pretrain"] == 2 and cores["finetune"] == 1


def test_at_the_papers_scale_generation_and_training_take_the_gpus_that_share_a_model(tmp_path):
    node = Resources(cores=64, gpus=8, memory_gb=1000, gpu_memory_gb=80)
    graph = graph_of("table1", "qwen3", str(tmp_path), node)
    gpus = {task.stage: task.resources.gpus for task in graph.tasks.values()}
    assert gpus["evaluate"] == gpus["sample"] == 2 and gpus["merge"] == 1 and gpus["finetune"] >= 1
    finetune = next(task for task in graph.tasks.values() if task.stage == "finetune")
    assert "GB on each of" in finetune.resources.lacking(dataclasses.replace(node, gpu_memory_gb=1.0))
    hours = {task.stage: task.seconds.value / 3600 for task in graph.tasks.values()}
    assert 1 < hours["finetune"] < 100 and 0.1 < hours["evaluate"] < 20  # of a plausible order of magnitude


def test_cells_of_several_outputs_folders_are_refused(tmp_path):
    configs = [config for _, config in sweep_of("table1", "tiny")][:2]
    configs = [dataclasses.replace(config, outputs=str(tmp_path / str(n))) for n, config in enumerate(configs)]
    with pytest.raises(ValueError, match="share one outputs folder"):
        unite(configs, LAPTOP)
