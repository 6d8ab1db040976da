"""What a run would fail of late is said in its first seconds."""

import json

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from eval.data import DataError
from pipelines import schema
from pipelines.chain import Cell, cell_of
from pipelines.cli import CONF
from pipelines.preflight import check


@pytest.fixture
def chat_cell():
    """A cell of the chat domain whose IFEval problems come from the file given."""
    schema.register()
    GlobalHydra.instance().clear()

    def make(data: str) -> Cell:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            overrides = ["domains=[chat]", "merge=individual", "calibrate=none", "evaluate.engine=transformers"]
            return cell_of(
                OmegaConf.to_object(
                    compose("config", overrides=[*overrides, f"scale.domains.chat.task_data.tiny_ifeval={data}"])
                )
            )

    return make


def test_problems_that_cannot_be_judged_stop_a_run_before_its_first_stage(chat_cell, tmp_path):
    problem = {"key": 1, "prompt": "Rhyme.", "instruction_id_list": ["keywords:rhyme"], "kwargs": [{}]}
    (tmp_path / "mine.jsonl").write_text(json.dumps(problem) + "\n")
    with pytest.raises(DataError, match=r"mine\.jsonl, problem 1: unknown instruction 'keywords:rhyme'"):
        check(chat_cell(str(tmp_path / "mine.jsonl")), tmp_path / "outputs")
    assert not (tmp_path / "outputs").exists()


def test_problems_that_can_be_judged_or_are_yet_to_be_made_do_not(chat_cell, tmp_path):
    problem = {"key": 1, "prompt": "Go.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    (tmp_path / "mine.jsonl").write_text(json.dumps(problem) + "\n")
    check(chat_cell(str(tmp_path / "mine.jsonl")), tmp_path / "outputs")
    check(chat_cell("world:tasks/tiny_ifeval.jsonl"), tmp_path / "outputs")
