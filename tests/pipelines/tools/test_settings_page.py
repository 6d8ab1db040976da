"""Table 2, the settings in use: read from what is composed, held against what is stated."""

import dataclasses
import functools

from hydra import compose
from omegaconf import OmegaConf

from pipelines.tools.settings_page import Setting, _markdown, _merge_of, settings_in_use
from tests.pipelines.composing import hydra_conf  # noqa: F401


def settings(*words: str) -> dict[str, Setting]:
    config = OmegaConf.to_object(compose("config", overrides=list(words)))
    return {one.key: one for one in settings_in_use(config, functools.partial(_merge_of, list(words)))}


def test_at_the_papers_scale_all_that_it_states_is_ours_but_the_forwards_precision():
    found = settings("scale=olmoe")
    assert [key for key, one in found.items() if one.agrees("paper") is False] == ["calibrate.dtype"]
    assert [key for key, one in found.items() if one.agrees("code") is False] == [
        "dare.seed", "calibrate.solver", "calibrate.dtype", "scale.sample.target", "evaluate.samples",
    ]  # fmt: skip
    assert (found["dare.normalize"].ours, found["fisher.smoothing"].ours) == ("true", "1e-10")
    assert found["ties.normalize"].agrees("paper") is None


def test_a_setting_given_by_hand_is_the_one_that_is_held_against_theirs():
    found = settings("scale=olmoe", "calibrate.dtype=float32", "evaluate.samples=4", "scale.finetune.epochs=3")
    assert found["calibrate.dtype"].agrees("paper") and found["evaluate.samples"].agrees("code")
    assert found["scale.finetune.epochs"].agrees("paper") is False
    page = _markdown(list(found.values()), "", "olmoe")
    assert "| fine-tuning: epochs | scale.finetune.epochs | 3 | **2** | – | – |" in page
    assert len(page.splitlines()) == len(found) + 6 and dataclasses.fields(Setting)[0].name == "setting"
