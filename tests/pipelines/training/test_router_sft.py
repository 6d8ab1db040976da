"""Router-only fine-tuning on recorded routing: only routers change, and toward what was recorded."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from harc.models.routers import find_routers
from pipelines.stages.pretrain import pretrain
from pipelines.stages.router_sft import RouterSftConfig, RouterSftStageConfig, router_sft
from pipelines.training.routers import examples_of, router_logits
from pipelines.training.settings import TrainConfig
from tests.pipelines.small_world import SETTINGS, make_tokenizer, make_world, pretraining, sums, write_jsonl


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("routers")
    world = make_world(folder / "world")
    found = {}
    for number, name in enumerate(("model", "source_math", "source_code")):
        found[name] = folder / name
        pretrain(pretraining(seed=number), {"world": world}, found[name])
    for name in ("math", "code"):
        write_jsonl(folder / f"data_{name}" / "srccrt.jsonl", sums(12 if name == "math" else 9))
        found[f"data_{name}"] = folder / f"data_{name}"
    return found


def stage(**settings) -> RouterSftStageConfig:
    train = TrainConfig(**{**SETTINGS, "epochs": 4, "learning_rate": 2e-2, "batch_size": 6})
    return RouterSftStageConfig(train, RouterSftConfig(**settings), sources={"math": None, "code": None})


def logits_of(path, ids):
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    with torch.no_grad(), router_logits(find_routers(model)) as found:
        output = model(torch.tensor([ids]), output_router_logits=True)
    return torch.stack(list(found.values()), 1), torch.stack(output.router_logits, 1)


def test_what_is_recorded_is_each_sources_own_routing_of_its_own_text(inputs, tmp_path):
    examples, recorded = examples_of(stage(), inputs, make_tokenizer(), tmp_path)
    assert len(examples) == len(recorded) == 21
    for number, source in ((0, "source_math"), (11, "source_math"), (12, "source_code"), (20, "source_code")):
        hooked, transformers_own = logits_of(inputs[source], examples[number]["input_ids"])
        torch.testing.assert_close(recorded[number].read(), hooked, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(hooked, transformers_own, rtol=1e-4, atol=1e-5)


def kl_to_sources(model, inputs, tmp_path) -> float:
    examples, recorded = examples_of(stage(), inputs, make_tokenizer(), tmp_path)
    found = []
    for row, one in zip(examples, recorded, strict=True):
        z, source = logits_of(model, row["input_ids"])[0], one.read()
        found.append((source.softmax(-1) * (source.log_softmax(-1) - z.log_softmax(-1))).sum(-1).mean())
    return float(torch.stack(found).mean())


def test_routers_alone_change_and_come_nearer_to_the_recorded_routing(inputs, tmp_path):
    metrics = router_sft(stage(lm_weight=0.0), inputs, tmp_path / "out")
    assert metrics["steps"] == 16 and not list((tmp_path / "out").glob("**/routing-*"))
    before, after = (
        AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (inputs["model"], tmp_path / "out")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.{layer}.mlp.gate.weight" for layer in (0, 1)}
    (tmp_path / "work").mkdir()
    first, last = (kl_to_sources(path, inputs, tmp_path / "work") for path in (inputs["model"], tmp_path / "out"))
    assert last < 0.8 * first


def test_the_loss_is_the_weighted_sum_of_its_parts(inputs, tmp_path):
    lines = {}
    for lm, kl in ((1.0, 0.0), (0.0, 100.0), (1.0, 100.0)):
        out = tmp_path / f"{lm}-{kl}"
        config = stage(lm_weight=lm, kl_weight=kl)
        config.train.epochs, config.train.steps, config.train.learning_rate = None, 1, 1e-9
        lines[lm, kl] = router_sft(config, inputs, out)["loss"]
    assert lines[1.0, 100.0] == pytest.approx(lines[1.0, 0.0] + lines[0.0, 100.0], rel=1e-3)
    assert lines[0.0, 100.0] > 0


@pytest.mark.parametrize(
    "settings", [{"kl_weight": -1.0}, {"lm_weight": float("nan")}, {"kl_weight": 0.0, "lm_weight": 0.0}]
)
def test_weights_that_nothing_can_be_learned_with_are_refused(settings):
    with pytest.raises(ValueError, match=r"calibrate\.(kl|lm)_weight"):
        RouterSftConfig(**settings)
