"""`evaluate.task_folder` in the pipeline: the evaluate stage's key holds the folder's files, and reports name it."""

from dataclasses import replace

import pytest
from hydra import compose
from omegaconf import OmegaConf

from pipelines.chain.cell import cell_of
from tests.pipelines.composing import hydra_conf  # noqa: F401
from tests.pipelines.report.records import content, table1_cells

CHOSEN = ["+scale.domains.math.tasks.mine=mine", "evaluate.tasks=[mine]"]


def node(*overrides: str):
    (found,) = cell_of(OmegaConf.to_object(compose("config", overrides=[*CHOSEN, *overrides]))).evaluations
    return found


def test_an_edited_file_is_measured_again_and_what_python_leaves_there_is_not_content(tmp_path):
    folder = tmp_path / "tasks"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "mine.yaml").write_text("task: mine")
    before = node(f"evaluate.task_folder={folder}").key
    (folder / "__pycache__/utils.pyc").write_text("made by importing")
    assert node(f"evaluate.task_folder={folder}").key == before
    (folder / "mine.yaml").write_text("task: mine\nrepeats: 4")
    assert node(f"evaluate.task_folder={folder}").key != before
    config = node(f"evaluate.task_folder={folder}", "+evaluate.task_metrics.mine='acc,none'").config
    assert (config.task_folder, config.task_metrics) == (str(folder), {"mine": "acc,none"})
    assert config.tasks == {"mine": None}


def test_what_there_cannot_be_is_refused_when_the_cell_is_composed(tmp_path):
    with pytest.raises(ValueError, match=r"evaluate.task_folder=.*none: no such folder"):
        node(f"evaluate.task_folder={tmp_path / 'none'}")
    with pytest.raises(ValueError, match="no validation problems"):
        node("evaluate.task_folder=lm_eval", "evaluate.split=validation")


def test_beside_the_papers_numbers_a_report_says_whose_task_files_graded():
    ours = table1_cells(scale="olmoe")
    theirs = [replace(cell, config={**cell.config, "evaluate": {"task_folder": "authors/eval_tasks"}}) for cell in ours]
    differ, named = "prompts and grading differ from those here", "those of the task files in authors/eval_tasks."
    for cells, scale, expected in ((ours, "olmoe", (True, False)), (theirs, "olmoe", (False, True)),
                                   (table1_cells(), "tiny", (False, False))):  # fmt: skip
        said = " ".join(content(cells, "table1", scale).notes)
        assert (differ in said, named in said) == expected
