"""A rehearsal: the real scale's configuration and loaders, on less of everything."""

import dataclasses

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from eval.evaluation import check_tasks
from pipelines.chain.cell import cell_of
from pipelines.config import Config, schema
from pipelines.data import load_records
from pipelines.graph.graph import Seconds
from pipelines.graph.seconds import REHEARSED, Clock, Rates, StageRate
from pipelines.places import CONF
from pipelines.rehearsal.config import small_size
from pipelines.rehearsal.rates import read_rehearsal
from pipelines.rehearsal.stand_ins import write_stand_ins
from pipelines.runner.estimate import ModelSize
from pipelines.runner.resources import Resources
from pipelines.sweep.jobs import typed

CELL = ["merge=wudi", "evaluate.engine=transformers", "domains=[chat,math,code]", "rehearse=true"]


@pytest.fixture
def composed():
    """A function from a scale and overrides to a cell's configuration."""
    schema.register()
    GlobalHydra.instance().clear()

    def make(scale: str, *overrides: str) -> Config:
        words = [f"scale={scale}", *CELL, *overrides]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return typed(compose("config", overrides=words), words)

    return make


@pytest.mark.parametrize(("scale", "experts"), [("olmoe", 64), ("qwen3", 128)])
def test_the_chain_is_the_real_ones_at_true_width_with_a_random_base_and_local_data(composed, scale, experts):
    config = composed(scale)
    nodes = {(node.stage, node.label): node for node in cell_of(config).nodes()}
    stages = [stage for stage, _ in nodes]
    assert stages[:2] == ["stand_ins", "random_base"]
    assert {"finetune", "sample", "merge", "calibrate", "diagnose", "evaluate"} <= set(stages)
    settings = nodes["random_base", f"{scale}_rehearsal"].config.architecture.settings
    assert (settings["hidden_size"], settings["num_experts"], settings["num_hidden_layers"]) == (2048, experts, 2)
    merge = nodes["merge", f"{scale}_rehearsal-wudi"].config
    assert merge.settings["steps"] == 2 and merge.base is None
    tuned = nodes["finetune", f"{scale}_rehearsal-math"].config
    assert tuned.data.path == "world:train/math.jsonl" and len(tuned.data.where["source"]) == 4
    assert (tuned.train.steps, tuned.train.epochs, tuned.train.packing) == (2, None, True)


def test_every_loader_of_the_scale_reads_the_stand_ins_and_the_benchmarks_are_judged_by_their_tasks(composed, tmp_path):
    config = composed("olmoe")
    (made,) = [node for node in cell_of(config).nodes() if node.stage == "stand_ins"]
    write_stand_ins(made.config, tmp_path)
    for domain in config.scale.domains.values():
        assert len(load_records(domain.train, tmp_path)) == made.config.train
        asked, held = (load_records(source, tmp_path) for source in (domain.calibration, domain.heldout))
        assert len(asked) == config.rehearsal.records and len(held) == config.rehearsal.heldout
        assert not {one["prompt"] for one in asked} & {one["prompt"] for one in held}
        assert all(one["response"] for one in (*asked, *held))
        check_tasks({task: tmp_path / path.removeprefix("world:") for task, path in domain.task_data.items()})
    assert len(load_records(config.scale.generic, tmp_path)) == config.rehearsal.records


def test_a_scale_without_a_published_model_is_refused(composed):
    with pytest.raises(ValueError, match="scale tiny names no architecture; expected scale=olmoe or qwen3"):
        composed("tiny")


def test_parameters_of_fewer_layers_are_those_of_the_architecture(composed):
    small = composed("olmoe").scale.size
    experts, attention = 64 * 3 * 2048 * 1024, 4 * 2048 * 2048
    assert small.parameters == pytest.approx(2 * (experts + attention) + 2 * 1024 * 2048, rel=0.01)
    again = small_size(small, 16, 50304)
    assert again.parameters == pytest.approx(6.92e9, rel=1e-6)


def test_a_plan_scales_the_work_at_the_rehearsed_rate_and_keeps_what_is_no_work(composed, tmp_path):
    (node,) = [one for one in cell_of(composed("olmoe")).nodes() if one.stage == "evaluate"]
    node = dataclasses.replace(node, inputs={})
    size = ModelSize(composed("olmoe").scale.size, "bfloat16")
    rates = Rates(flops=1e9, generated=1e8, gigabytes=1, start=1)
    rate = StageRate("evaluate", 2, 20.0, 30.0, 10.0, 11.0, 3.0, 2.0, 0.0, 0.0)
    one_core = Resources(cores=1, memory_gb=24)
    clock = Clock(tmp_path, one_core, core=rates, rehearsed={"evaluate": rate})
    typical = clock.work_seconds(node, size, one_core)
    assert clock.seconds(node, size, one_core) == Seconds(20.0 + 3 * typical, REHEARSED)
    assert read_rehearsal(tmp_path, "olmoe", one_core) is None
