"""The options of the group `merge`: every setting a typed key, weights by domain, published values, the grid."""

import dataclasses

import pytest
from hydra import compose
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from harc.merging.registry import find_method, methods
from pipelines.chain.cell import cell_of
from pipelines.config.merging import grid_lines, names_of, weights_by_domain
from pipelines.stages.merge import MergeStageConfig
from pipelines.sweep.combinations import expand
from tests.pipelines.composing import hydra_conf, sweep_of  # noqa: F401

PAPER = {"math": 0.6, "code": 0.4}


def stage_of(*overrides: str) -> MergeStageConfig:
    return cell_of(OmegaConf.to_object(compose("config", overrides=list(overrides)))).merged.config


@pytest.mark.parametrize("name", methods())
def test_every_setting_of_a_method_is_a_key_with_its_default(name):
    found, settings = find_method(name), stage_of(f"merge={name}").settings
    declared = {one.name: one.default for one in dataclasses.fields(found.settings)}
    assert set(settings) == set(declared) | ({"seed"} if found.random else set())
    assert {k: v for k, v in settings.items() if k not in ("weights", "seed")} == {
        k: v for k, v in declared.items() if k != "weights"
    }


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("merge=ties merge.normalize=false merge.scale=0.5", {"normalize": False, "scale": 0.5}),
        ("merge=dare merge.linear=true merge.normalize=true seed=3", {"linear": True, "normalize": True, "seed": 3}),
        ("merge=fisher merge.labels=sampled merge.activation_gb=1", {"labels": "sampled", "activation_gb": 1.0}),
        ("merge=regmean merge.tokens_per_batch=64 merge.weights={math:0.3,code:0.7}",
         {"tokens_per_batch": 64, "weights": {"math": 0.3, "code": 0.7}}),
        ("merge=dare merge.seed=5 seed=3", {"seed": 5}),
    ],
)  # fmt: skip
def test_what_a_method_can_do_is_reached_from_the_command_line(words, expected):
    settings = stage_of(*words.split()).settings
    assert settings | expected == settings


def test_published_values_are_chosen_by_one_switch_and_a_key_set_by_hand_wins():
    ours = {"dare": {"normalize": False}, "regmean": {"divide_by": "source"}, "sce": {"density": 0.1},
            "regmean_plus": {"divide_by": "source"},
            "fisher": {"score": "sequence", "normalize": True, "floor": 1e-6, "smoothing": 0.0}}  # fmt: skip
    theirs = {"dare": {"normalize": True}, "regmean": {"divide_by": "module"}, "sce": {"density": 1.0},
              "regmean_plus": {"divide_by": "module"},
              "fisher": {"score": "batch", "normalize": False, "floor": 0.0, "smoothing": 1e-10}}  # fmt: skip
    for name in methods():
        plain, published = (stage_of(f"merge={name}", f"merge.published={on}").settings for on in ("false", "true"))
        assert plain | ours.get(name, {}) == plain
        assert published == plain | theirs.get(name, {})
    assert stage_of("merge=dare", "merge.published=true", "merge.normalize=false").settings["normalize"] is False


@pytest.mark.parametrize("experiment", ["table1", "table3", "table5", "table6", "table7", "fig3b", "fig4b", "grid"])
def test_the_papers_experiments_merge_as_published(experiment):
    cells = [config for _, config in sweep_of(experiment, "tiny", whole=experiment != "grid")]
    assert {config.merge.published for config in cells} == {True}
    dare = [config.merge.normalize for config in cells if config.merge.method == "dare"]
    assert set(dare) <= {True}


def test_text_is_read_by_the_methods_that_need_it():
    reading = {name for name in methods() if stage_of(f"merge={name}").max_length is not None}
    assert reading == {"fisher", "regmean", "regmean_plus"}


def test_a_wrong_key_or_type_fails_when_it_is_composed():
    for word in ("merge.density=much", "merge.densty=0.3", "merge.normalize=perhaps"):
        with pytest.raises(ConfigCompositionException, match=word.partition("=")[0].replace(".", r"\.")):
            compose("config", overrides=["merge=ties", word])
    with pytest.raises(ValueError, match=r"merge method ties: density is 1\.5, expected above 0 and at most 1"):
        stage_of("merge=ties", "merge.density=1.5")
    with pytest.raises(ValueError, match=r"merge\.weights=much: expected numbers by domain"):
        stage_of("merge=ties", "merge.weights=much")


def test_weights_follow_the_order_of_the_domains_and_others_than_the_papers_are_equal():
    ties, tasks = find_method("ties"), find_method("task_arithmetic")
    assert list(weights_by_domain(ties, None, ["code", "math"]).items()) == [("code", 0.4), ("math", 0.6)]
    assert weights_by_domain(ties, None, ["math", "chat"]) == {"math": 0.5, "chat": 0.5}
    assert weights_by_domain(ties, None, ["chat", "math", "code"]) == dict.fromkeys(["chat", "math", "code"], 1 / 3)
    assert weights_by_domain(tasks, None, ["math", "code"]) == {"math": 1.0, "code": 1.0}
    given = {"math": 1, "code": 3}
    assert list(weights_by_domain(tasks, given, ["code", "math"]).items()) == [("code", 3), ("math", 1)]


@pytest.mark.parametrize("weights", [{"maths": 1.0}, {"math": 0.6}, PAPER | {"law": 1.0}, {}])
def test_weights_of_other_domains_are_refused(weights):
    with pytest.raises(ValueError, match=r"merge\.weights names .* the domains are \['code', 'math'\]"):
        weights_by_domain(find_method("ties"), weights, ["math", "code"])


def test_the_grid_is_what_the_settings_declare():
    assert grid_lines(["average", "ties", "wudi"], ["math", "code"]) == [
        "merge=ties merge.density=0.2,0.4,0.7 merge.weights={math:0.6,code:0.4},{math:0.5,code:0.5}",
        "merge=wudi merge.lr=2e-05,0.0002,0.001",
    ]
    assert grid_lines(["ties"], ["chat", "math", "code"]) == ["merge=ties merge.density=0.2,0.4,0.7"]
    assert grid_lines(["average", "ties"], ["math"], [0.5, 1.0])[-1] == (
        "merge=average,ties calibrate=harc calibrate.alpha=0.5,1.0"
    )
    lines = compose("config", overrides=["+experiment=grid", "grid_alpha=[]"]).experiment.cells
    assert len(expand(list(lines))) == 60
    swept = {line.split()[0] for line in lines}
    assert swept == {f"merge={name}" for name in methods() if grid_lines([name], ["math", "code"])}


def test_merges_names_methods():
    assert names_of("all") == list(methods()) and names_of("ties") == ["ties"]
    with pytest.raises(ValueError, match="unknown merge method 'tise'; valid are: average"):
        names_of(["tise"])
    with pytest.raises(ValueError, match="merges=None: expected `all` or a list"):
        names_of(None)


def test_aligning_is_a_setting_of_every_merge_and_leaves_the_others_keys_as_they_are():
    plain, aligned = stage_of("merge=wudi"), stage_of("merge=wudi", "merge.align=true")
    assert "align" not in plain.settings
    assert aligned.settings == {**plain.settings, "align": True}
