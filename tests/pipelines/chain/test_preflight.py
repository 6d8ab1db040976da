"""What a run would fail of late is said in its first seconds."""

import json

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from eval.data import DataError
from pipelines.chain.preflight import check
from pipelines.config import schema
from pipelines.graph.graph import Graph
from pipelines.graph.seconds import Clock, Rates
from pipelines.graph.unite import unite
from pipelines.places import CONF
from pipelines.runner.resources import Resources

MACHINE = Resources(cores=1, memory_gb=24)


@pytest.fixture
def chat_graph(tmp_path):
    """A cell of the chat domain whose IFEval problems come from the file given."""
    schema.register()
    GlobalHydra.instance().clear()

    def make(data: str) -> Graph:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            overrides = ["domains=[chat]", "merge=individual", "calibrate=none", "evaluate.engine=transformers"]
            own = [f"scale.domains.chat.task_data.tiny_ifeval={data}", f"outputs={tmp_path / 'outputs'}"]
            return unite([OmegaConf.to_object(compose("config", overrides=[*overrides, *own]))], MACHINE)

    return make


def test_problems_that_cannot_be_judged_stop_a_run_before_its_first_stage(chat_graph, tmp_path):
    problem = {"key": 1, "prompt": "Rhyme.", "instruction_id_list": ["keywords:rhyme"], "kwargs": [{}]}
    (tmp_path / "mine.jsonl").write_text(json.dumps(problem) + "\n")
    graph = chat_graph(str(tmp_path / "mine.jsonl"))
    ((key, error),) = check(graph, MACHINE).items()
    assert graph.tasks[key].stage == "evaluate" and isinstance(error, DataError)
    assert "mine.jsonl, problem 1: unknown instruction 'keywords:rhyme'" in str(error)
    assert not (tmp_path / "outputs").exists()


def test_problems_that_can_be_judged_or_are_yet_to_be_made_do_not(chat_graph, tmp_path):
    problem = {"key": 1, "prompt": "Go.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    (tmp_path / "mine.jsonl").write_text(json.dumps(problem) + "\n")
    assert check(chat_graph(str(tmp_path / "mine.jsonl")), MACHINE) == {}
    assert check(chat_graph("world:tasks/tiny_ifeval.jsonl"), MACHINE) == {}


def test_a_stage_that_the_machine_has_too_little_memory_for_is_named_with_what_it_needs(chat_graph):
    graph = chat_graph("world:tasks/tiny_ifeval.jsonl")
    failing = check(graph, Resources(cores=1, memory_gb=0.01))
    assert {graph.tasks[key].stage for key in failing} >= {"pretrain", "finetune"}
    assert all("this machine has 0 GB" in str(error) for error in failing.values())
    (tuning,) = [str(error) for key, error in failing.items() if graph.tasks[key].stage == "finetune"]
    assert "launch.processes=8" in tuning and "scale.domains.<domain>.checkpoint" in tuning


def test_hidden_states_beyond_a_stages_share_of_the_memory_are_mapped_and_cost_time(tmp_path):
    stage = Resources(memory_gb=50, mappable_gb=45, passes=10)
    roomy, tight = stage.on(Resources(memory_gb=100)), stage.on(Resources(memory_gb=20))
    assert (roomy.memory_gb, roomy.mapped_gb) == (50, 0)
    assert (tight.memory_gb, tight.mapped_gb) == (16, 34) and tight.on(Resources(memory_gb=20)) == tight
    clock = Clock(tmp_path, Resources(), core=Rates(flops=1, generated=1, gigabytes=0.5, start=0))
    assert (clock.mapping(roomy), clock.mapping(tight)) == (0, 34 * 10 / 0.5)
    assert "needs about 5 GB" in stage.lacking(Resources(memory_gb=4))  # what cannot be mapped
