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
