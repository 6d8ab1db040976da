"""Composition: every experiment, scale and option makes a chain; shared work has one key."""

import dataclasses

import pytest
from hydra import compose
from omegaconf import OmegaConf

from harc.merging.registry import methods
from pipelines.chain.cell import cell_of, row_of
from pipelines.chain.run import excluded, refused
from pipelines.config import Config
from pipelines.config.keys import refuse_unknown_keys
from pipelines.places import CONF
from pipelines.runner.estimate import ModelSize, SizeConfig
from pipelines.sweep.combinations import cell_overrides, expand
from tests.pipelines.composing import hydra_conf, sweep_of  # noqa: F401

METHODS = list(methods())
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


def test_a_calibration_to_the_sources_own_routing_is_another_one_of_another_name() -> None:
    paper, own = (
        cell_of(composed("merge=ties", f"calibrate.target={target}")) for target in ("merged_inputs", "source_inputs")
    )
    assert paper.calibrated.label.endswith("-harc")
    assert own.calibrated.label.endswith("-harc-source_inputs")
    assert own.calibrated.key != paper.calibrated.key
    assert own.calibrated.inputs.keys() == paper.calibrated.inputs.keys()
    control = cell_of(composed("merge=ties", "calibrate.control=random"))
    assert control.calibrated.label.endswith("-harc-random") and control.calibrated.key != paper.calibrated.key
    size = ModelSize(SizeConfig(1e9, 16, 2048, 64), "bfloat16")
    assert (
        own.calibrated.spec.estimate(own.calibrated, size).memory_gb
        > paper.calibrated.spec.estimate(paper.calibrated, size).memory_gb
    )


def test_the_engine_choice_is_part_of_what_it_generates():
    assert keys(composed(), "evaluate") != keys(composed("evaluate.engine=transformers"), "evaluate")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("merge", ["dare", "della"])
def test_the_root_seed_is_that_of_everything_below_it(scale, merge):
    def seeds(value, at=""):
        if isinstance(value, dict):
            return {place: seed for key, one in value.items() for place, seed in seeds(one, f"{at}.{key}").items()}
        named = at.rsplit(".", 1)[-1].removeprefix("shuffle_") == "seed"
        return {at: value} if named and value is not None else {}

    config = composed(f"scale={scale}", f"merge={merge}", "seed=7")
    found = seeds(dataclasses.asdict(config))
    # the engine's own seed decides nothing: every request carries the stage's
    assert {place for place, seed in found.items() if seed != 7} == {".scale.engine.seed"}
    assert len(found) >= 7
    one, other = cell_of(config).nodes(), cell_of(composed(f"scale={scale}", f"merge={merge}")).nodes()
    assert len(one) == len(other) and {node.key for node in one}.isdisjoint(node.key for node in other)


def test_a_seed_of_its_own_wins_over_the_roots():
    config = composed("seed=7", "scale.world.seed=5", "evaluate.seed=0")
    assert (config.scale.world.seed, config.evaluate.seed, config.scale.finetune.seed) == (5, 0, 7)


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


EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("[!_]*.yaml"))
ONE_JOB = {"appendix_c1", "calibrate", "check", "dashboard", "doctor", "paper", "patch", "table2"}  # no sweep of cells


LONG = {"targets", "grid", "fig3b", "fig4b", "table6"}  # of these every cell is composed at one scale alone


def cells_of(experiment: str, scale: str) -> list[Config]:
    """Every cell of an experiment that is a row."""
    whole = experiment not in LONG or (scale == "tiny" and experiment != "grid")
    return [config for _, config in sweep_of(experiment, scale, whole=whole) if not excluded(config)]


@pytest.mark.parametrize("scale", SCALES)
def test_settings_are_chosen_on_what_the_scale_has_for_it(scale):
    def measured(*more: str):
        config = composed("+experiment=grid", f"scale={scale}", "merge=ties", "calibrate=none", *more)
        return {node.stage: node.config for node in cell_of(config).evaluations}, set(cell_of(config).columns)

    by_stage, columns = measured()
    if scale == "tiny":
        assert by_stage.keys() == {"evaluate"} and columns >= {"gsm8k", "mbpp_plus"}
        assert (by_stage["evaluate"].samples, by_stage["evaluate"].temperature) == (1, 0.0)
        assert all(data.startswith("world:validation/") for data in by_stage["evaluate"].tasks.values())
        return
    assert by_stage.keys() == {"validate"} and columns == {"math_validation", "code_validation"}
    domains = composed(f"scale={scale}").scale.domains
    for name, source in by_stage["validate"].records.items():
        one = domains[name]
        assert (source.path, source.format) == (one.calibration.path, one.calibration.format)
        assert one.heldout.limit <= source.skip and source.skip + source.limit <= one.calibration.skip
    assert measured("domains=[chat,math,code]")[1] == columns  # nothing judges chat
    with pytest.raises(ValueError, match=r"nothing to choose settings on for chat, math: set scale\.domains\.NAME"):
        measured("domains=[chat,math]", "scale.domains.math.validation=null")


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name not in ONE_JOB])
def test_every_experiment_composes_at_every_scale(experiment, scale):
    cells = cells_of(experiment, scale)
    assert len(cells) >= 2
    assert bool(refused(cells[0])) == ((experiment, scale) == ("table6", "olmoe"))
    for config in cells:
        assert cell_of(config).nodes()
    if (experiment, scale) in {("table1", "qwen3"), ("table5", "qwen3"), ("table7", "qwen3")}:
        assert "regmean" not in {config.merge.method for config in cells}


@pytest.mark.parametrize(("scale", "left_out"), [("tiny", []), ("olmoe", ["table6"]), ("qwen3", [])])
def test_the_paper_composes_at_every_scale_and_says_what_is_left_out_and_why(scale, left_out):
    paper = composed("+experiment=paper", f"scale={scale}", "plan=true").experiment.runs
    reasons = {name: refused(composed(f"+experiment={name}", f"scale={scale}")) for name in paper}
    assert [name for name, reason in reasons.items() if reason] == left_out
    assert all("Qwen3-30B-A3B, run with scale=qwen3" in reasons[name] for name in left_out)
    for _, config in sweep_of("table7", scale):  # RegMean, which the larger scale doesn't run
        reason = excluded(config)
        assert (reason is not None) == (scale == "qwen3" and config.merge.method == "regmean")
        assert reason is None or "the paper leaves RegMean out at this size" in reason


def test_the_paper_runs_every_table_and_figure_and_what_goes_beyond():
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

    # table7: four tunings, two of routers alone; table4: the last quarter and half; fig3a: two Hessians; fig3c: four
    # compositions; fig1: two swaps a domain, and two replays, which are no evaluate stages
    assert len(evaluations("table7") - evaluations("table1")) == 6
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
    assert cell_overrides(compose("config")) == []
    assert cell_overrides(compose("config", overrides=[f"experiment.cells={lines}", "experiment.cell=0"])) == lines[:1]


def test_a_key_appended_to_a_typed_group_is_refused():
    with pytest.raises(ValueError, match=r"unknown key calibrate\.alhpa \(valid keys there: alpha, beta"):
        composed("+calibrate.alhpa=0.5")


@pytest.mark.parametrize("scale", SCALES)
def test_routing_is_measured_on_the_text_that_is_asked_for(scale):
    def text(word: str):
        cell = cell_of(composed(f"scale={scale}", "merge=ties", "calibrate=none", f"routing_text={word}"))
        return cell.diagnosed.config.heldout

    assert text("calibration") == {}
    domains = composed(f"scale={scale}").scale.domains
    for name in ("math", "code"):
        assert text("heldout")[name].path == domains[name].heldout.path
        sft, train = text("sft")[name], domains[name].train
        assert (sft.path, sft.skip, sft.shuffle_seed) == (train.path, 0, train.shuffle_seed) or scale == "tiny"
        assert sft.where == train.where and (scale == "tiny" or (sft.limit, sft.whole) == (train.skip, True))
    with pytest.raises(ValueError, match=r"set scale\.domains\.math\.sft_validation"):
        cell_of(composed("routing_text=sft", "scale.domains.math.sft_validation=null"))


def test_router_sft_stands_in_the_place_of_calibration_and_needs_the_sources_and_their_data():
    cell = cell_of(composed("merge=average", "calibrate=router_sft"))
    assert row_of(cell.config) == {"method": "Weight Averaging + router SFT", "harc": "no"}
    node = cell.calibrated
    assert node.stage == "router_sft" and node.label == "tiny-average-router_sft"
    assert set(node.inputs) == {"model", "source_math", "source_code", "data_math", "data_code"}
    heavier = cell_of(composed("merge=average", "calibrate=router_sft", "calibrate.kl_weight=10"))
    assert heavier.calibrated.key != node.key and heavier.merged.key == cell.merged.key
    rows = [one for _, one in sweep_of("table7", "tiny") if one.calibrate.method == "router_sft"]
    assert [(one.merge.method, one.sft, excluded(one)) for one in rows] == [
        ("wudi", False, None), ("regmean", False, None),
    ]  # fmt: skip
    paper = composed("scale=olmoe", "calibrate=router_sft")
    assert (paper.scale.router_sft.learning_rate, paper.scale.router_sft.batch_size) == (5e-5, 64)
    assert (paper.calibrate.kl_weight, paper.calibrate.lm_weight) == (100, 1)


def test_replayed_decisions_are_each_domains_sources_on_its_own_tasks():
    cell = cell_of(composed("merge=wudi", "calibrate=none", "swap=decisions"))
    assert row_of(cell.config)["method"] == "WUDI-Merging with the source's decisions"
    assert [(node.stage, node.label) for node in cell.evaluations] == [
        ("replay", "tiny-wudi-math-decisions"), ("replay", "tiny-wudi-code-decisions"),
    ]  # fmt: skip
    math, code = cell.evaluations
    assert set(math.inputs) == {"model", "source_math", "world"} and next(iter(math.config.tasks)) == "tiny_gsm8k"
    assert list(code.config.decisions) == ["code"] and code.config.engine.kind == "transformers"
    with pytest.raises(ValueError, match="swap=decisions replaces the routers"):
        cell_of(composed("merge=wudi", "swap=decisions"))


def test_repair_is_a_stage_between_merge_and_measurement():
    config = composed("merge=average", "calibrate=repair")
    assert row_of(config) == {"method": "Weight Averaging + repair", "harc": "no"}
    stages = [node.stage for node in cell_of(config).nodes()]
    assert stages[stages.index("repair") :] == ["repair", "diagnose", "diagnose", "evaluate"]
    assert "calibrate" not in stages
    partly = composed("merge=average", "calibrate=repair", "calibrate.parts=[router,experts]")
    assert keys(partly, "merge") == keys(config, "merge")
    assert keys(partly, "repair") != keys(config, "repair")
    for wrong, message in (("ridge=0", "calibrate.ridge=0: expected"), ("parts=[norms]", "calibrate.parts=norms")):
        with pytest.raises(ValueError, match=message):
            composed("merge=average", "calibrate=repair", f"calibrate.{wrong}")
