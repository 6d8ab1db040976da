"""Composition: every experiment, scale and option makes a chain; shared work has one key."""

import functools

import pytest
from hydra import compose
from omegaconf import OmegaConf

from harc.merge.driver import find_method
from pipelines.cell import excluded
from pipelines.cells import compose_cell, expand
from pipelines.chain import cell_of, row_of
from pipelines.cli import CONF, refuse_unknown_keys
from pipelines.config import Config
from tests.pipelines.composing import hydra_conf, sweep_of  # noqa: F401

METHODS = ["average", "task_arithmetic", "ties", "dare", "della", "sce", "wudi", "fisher", "regmean"]
SCALES = ["tiny", "olmoe", "qwen3"]


def composed(*overrides: str) -> Config:
    config = compose("config", overrides=list(overrides))
    refuse_unknown_keys(config)
    return OmegaConf.to_object(config)


def keys(config: Config, stage: str) -> set[str]:
    return {node.key for node in cell_of(config).nodes() if node.stage == stage}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("merge", METHODS)
def test_every_method_composes_at_every_scale(scale, merge):
    if (scale, merge) == ("qwen3", "regmean"):
        with pytest.raises(ValueError, match="regmean is not run at scale=qwen3"):
            cell_of(composed(f"scale={scale}", f"merge={merge}"))
        return
    stages = [node.stage for node in cell_of(composed(f"scale={scale}", f"merge={merge}")).nodes()]
    made_here = ["world", "pretrain"] if scale == "tiny" else []
    expected = [*made_here, "finetune", "finetune", "sample", "sample", "merge", "calibrate", "evaluate"]
    expected += ["diagnose", "diagnose"]  # as merged, and as calibrated
    assert sorted(stages) == sorted(expected)


@pytest.mark.parametrize("merge", METHODS)
def test_the_library_takes_every_setting_of_a_methods_options(merge):
    merged = cell_of(composed(f"merge={merge}")).merged
    settings = {key: value for key, value in merged.config.settings.items() if key not in ("weights", "seed")}
    find_method(merge).configure(settings)


def test_the_rows_of_table1_share_fine_tunes_data_and_merges():
    seen: dict[str, set[str]] = {}
    for merge in ["average", "ties", "dare", "wudi", "fisher", "regmean"]:
        for calibrate in ["none", "harc"]:
            config = composed("+experiment=table1", f"merge={merge}", f"calibrate={calibrate}")
            for node in cell_of(config).nodes():
                seen.setdefault(node.stage, set()).add(node.key)
    counts = {stage: len(found) for stage, found in seen.items()}
    assert counts == {
        "world": 1, "pretrain": 1, "finetune": 2, "sample": 2, "merge": 6, "calibrate": 6, "evaluate": 12,
        "diagnose": 12,
    }  # fmt: skip


def test_a_changed_option_remakes_only_what_depends_on_it():
    one, other = composed("merge=ties"), composed("merge=ties", "calibrate.alpha=0.5")
    for stage in ["pretrain", "finetune", "sample", "merge"]:
        assert keys(one, stage) == keys(other, stage)
    for stage in ["calibrate", "evaluate"]:
        assert keys(one, stage).isdisjoint(keys(other, stage))
    assert len(keys(one, "diagnose") & keys(other, "diagnose")) == 1  # the uncalibrated merge's


def test_the_engine_choice_is_part_of_what_it_generates():
    assert keys(composed(), "evaluate") != keys(composed("evaluate.engine=transformers"), "evaluate")


def test_the_number_of_processes_changes_no_key():
    assert keys(composed(), "finetune") == keys(composed("launch.processes=2"), "finetune")


def test_individual_measures_each_source_on_its_own_domain():
    cell = cell_of(composed("merge=individual", "calibrate=none"))
    assert [list(node.config.tasks) for node in cell.evaluations] == [
        ["tiny_gsm8k", "tiny_math500"],
        ["tiny_humaneval_plus", "tiny_mbpp_plus"],
    ]
    assert row_of(cell.config) == {"method": "Individual", "harc": "no"} and cell.diagnosed is None


def test_table1_leaves_out_the_calibrated_individual_models():
    assert excluded(composed("+experiment=table1", "merge=individual", "calibrate=harc"))
    assert not excluded(composed("+experiment=table1", "merge=individual", "calibrate=none"))


def test_a_users_checkpoint_replaces_the_fine_tuning(tmp_path):
    config = composed(f"scale.domains.math.checkpoint={tmp_path}")
    cell = cell_of(config)
    assert len(keys(config, "finetune")) == 1
    assert cell.merged.config.sources == {"math": str(tmp_path), "code": None}


def test_a_domain_may_take_its_own_number_of_fine_tuning_steps():
    chains = [cell_of(composed(f"domains=[{first},math]")).nodes() for first in ("chat", "code")]
    steps = [{node.label: node.config.train.steps for node in chain if node.stage == "finetune"} for chain in chains]
    assert steps == [{"tiny-chat": 1000, "tiny-math": 500}, {"tiny-code": 500, "tiny-math": 500}]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["domains=[math,cats]"], "no domain 'cats'; it has chat, code, math"),
        (["domains=[math]"], "at least two domains"),
        (["merge=individual", "calibrate=harc"], "no merged model: leave out calibrate"),
        (["outputs="], "outputs is empty"),
        (["merge=individual", "calibrate=none", "swap=source"], "no merged model: leave out swap"),
        (["swap=source"], "swap=source replaces the routers: use it with calibrate=none"),
        (["larger=true", "scale.larger=null"], "scale tiny has no larger architecture"),
        (["merge=individual", "calibrate=none", "evaluate.tasks=[]"], "nothing to measure"),
        (["evaluate.samples=0"], "evaluate.samples=0: expected 1 or more"),
        (["evaluate.limit=-1"], "evaluate.limit=-1: expected 1 or more"),
        (["evaluate.temperature=-0.5"], "evaluate.temperature=-0.5: expected 0 or more"),
        (["evaluate.tasks=[gsm9k]"], "unknown gsm9k; valid are gsm8k"),
        (["scale.base=./nowhere"], "./nowhere: no such file or folder"),
        (["scale.domains.math.checkpoint=/nowhere/at/all"], "/nowhere/at/all: no such file"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(overrides, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        cell_of(composed(*overrides))


EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
ONE_JOB = {"calibrate", "dashboard", "paper"}


@functools.cache
def cells_of(experiment: str, scale: str) -> list[Config]:
    """Every cell of an experiment that is a row."""
    return [config for _, config in sweep_of(experiment, scale) if not excluded(config)]


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name not in ONE_JOB])
def test_every_experiment_composes_at_every_scale(experiment, scale):
    cells = cells_of(experiment, scale)
    assert len(cells) >= 2
    for config in cells:
        if experiment == "grid" and scale != "tiny":
            with pytest.raises(ValueError, match="no validation problems for gsm8k"):
                cell_of(config)
        else:
            assert cell_of(config).nodes()
    if (experiment, scale) in {("table1", "qwen3"), ("table5", "qwen3"), ("table7", "qwen3")}:
        assert "regmean" not in {config.merge.method for config in cells}


def test_the_paper_runs_every_table_and_figure():
    runs = composed("+experiment=paper").experiment.runs
    assert sorted(runs) == sorted(set(EXPERIMENTS) - ONE_JOB - {"grid", "world"})


def test_table6_trains_the_larger_architecture_and_no_regmean():
    cells = cells_of("table6", "tiny")
    assert {config.merge.method for config in cells} == {"individual", "average", "ties", "dare", "wudi", "fisher"}
    (pretrained,) = {node.key: node for config in cells for node in cell_of(config).nodes()
                     if node.stage == "pretrain"}.values()  # fmt: skip
    assert pretrained.config.architecture.model_type == "qwen3_moe" and pretrained.label == "tiny-qwen3_moe"


@pytest.mark.slow
def test_experiments_share_their_evaluations():
    def evaluations(*experiments: str) -> set[str]:
        cells = [config for name in experiments for config in cells_of(name, "tiny")]
        return {node.key for config in cells for node in cell_of(config).nodes() if node.stage == "evaluate"}

    # table7: four tunings; table4: the last quarter and half; fig3a: two Hessians; fig3c: four compositions;
    # fig1: two swaps a domain
    assert len(evaluations("table7") - evaluations("table1")) == 4
    new = {
        name: len(evaluations(name) - evaluations("fig3b", "table5")) for name in ("table4", "fig3a", "fig3c", "fig1")
    }
    assert new == {"table4": 2, "fig3a": 2, "fig3c": 4, "fig1": 4}


def test_the_amount_of_calibration_data_is_harcs_alone():
    whole, some = composed("merge=regmean"), composed("merge=regmean", "calibration_data.fraction=0.5")
    assert keys(whole, "merge") == keys(some, "merge") and keys(whole, "calibrate") != keys(some, "calibrate")


def test_a_cells_line_wins_over_the_groups_and_the_users_options_stay():
    lines = ["calibrate=none", "calibrate=harc calibrate.alpha=0.1,0.3 calibrate.beta=null,10"]
    assert [len(words) for words in expand(lines)] == [1, 3, 3, 3, 3]
    assert expand(lines)[3] == ["calibrate=harc", "calibrate.alpha=0.3", "calibrate.beta=null"]
    assert compose_cell(compose("config")).experiment.cell is None


def test_a_key_appended_to_a_typed_group_is_refused():
    with pytest.raises(ValueError, match=r"unknown key calibrate\.alhpa \(valid keys there: alpha, beta"):
        composed("+calibrate.alhpa=0.5")
