"""Table 6's larger architecture, with the tiny scale's own settings: trained, merged, calibrated, and run by vLLM.

Qwen3-MoE normalises the chosen experts' probabilities; routing is measured on the softmax of all logits all the same.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import harc
from harc.tokens import TokenSequence, encode
from pipelines.cli import CONF
from pipelines.config import schema
from pipelines.data.source import DataSource
from pipelines.stages.finetune import FinetuneConfig, finetune
from pipelines.stages.pretrain import ArchitectureConfig, PretrainConfig, pretrain
from pipelines.training.settings import TrainConfig
from tests.pipelines.small_world import make_world, sums, write_jsonl

pytestmark = pytest.mark.slow

TRAINING = {"batch_size": 8, "learning_rate": 2e-3, "max_length": 96, "dtype": "float32", "log_steps": 1}
PROMPTS = [f"<user>{row['prompt']}<assistant>" for row in sums(8)]

ENGINE = """
import json, sys
from eval.config import EngineConfig
from eval.engines import load_engine

kind, prompts, *models = sys.argv[1:]
texts = []
for model in models:
    engine = load_engine(EngineConfig(kind=kind, dtype="float32", max_model_len=320, kv_cache_gb=0.25), model)
    texts.append(engine.generate(json.loads(prompts), n=1, temperature=0.0, max_tokens=24))
    engine.close()
json.dump(texts, sys.stdout)
"""


def larger() -> ArchitectureConfig:
    schema.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = compose("config", overrides=["scale=tiny"]).scale.larger
    return ArchitectureConfig(found.model_type, dict(found.settings))


def differences(count: int) -> list[dict]:
    return [
        {**row, "prompt": f"Take {n % 5} from {n}.", "response": f"The answer is {n - n % 5}."}
        for n, row in enumerate(sums(count))
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Base, a source of each of two domains, their merge, and the merge calibrated on the sources' own data."""
    root = tmp_path_factory.mktemp("larger")
    world = make_world(root / "world")
    write_jsonl(world / "train" / "code.jsonl", differences(60))
    architecture = larger()
    data = {name: DataSource(f"world:train/{name}.jsonl") for name in ("math", "code")}
    base = PretrainConfig(architecture=architecture, data=data["math"], steps=40, load_balancing=0.01, **TRAINING)
    pretrain(base, {"world": world}, root / "base")
    for name, source in data.items():
        settings = FinetuneConfig(data=source, train=TrainConfig(steps=15, **TRAINING))
        finetune(settings, {"world": world, "base": root / "base"}, root / name)
    sources = [root / name for name in data]
    harc.merge("wudi", sources, root / "base", root / "merged", progress=False, steps=5)
    harc.calibrate(root / "merged", sources, texts(root), out=root / "calibrated", progress=False)
    return {path.name: path for path in root.iterdir()}


def texts(root: Path) -> list[list[TokenSequence]]:
    tokenizer = AutoTokenizer.from_pretrained(root / "base")
    return [encode(tokenizer, rows, 96) for rows in (sums(60), differences(60))]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in path.glob("*.safetensors") for name, value in load_file(file).items()}


def router_logits(path: Path, sequences: list[TokenSequence]) -> list[torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        runs = [model(sequence.ids[None], output_router_logits=True).router_logits for sequence in sequences]
    return [torch.cat(layer).reshape(-1, layer[0].shape[-1]) for layer in zip(*runs, strict=True)]


def test_it_learns_and_its_checkpoints_have_the_published_layout(models):
    losses = [json.loads(line)["loss"] for line in (models["base"] / "loss.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] / 2
    settings = larger().settings
    last = f"model.layers.{settings['num_hidden_layers'] - 1}"
    expected = {
        f"{last}.mlp.experts.{settings['num_experts'] - 1}.gate_proj.weight": (64, 128),
        f"{last}.mlp.gate.weight": (32, 128),
        f"{last}.self_attn.q_norm.weight": (32,),
        f"{last}.self_attn.k_norm.weight": (32,),
        "lm_head.weight": None,
    }
    for name in ("base", "math", "merged", "calibrated"):
        found = tensors(models[name])
        for key, shape in expected.items():
            assert key in found and shape in (None, tuple(found[key].shape)), key
        assert not any("gate_up_proj" in key for key in found)
        model, report = AutoModelForCausalLM.from_pretrained(models[name], output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        assert model.config.norm_topk_prob and model.config.num_experts_per_tok == settings["num_experts_per_tok"]


def test_calibration_changes_routers_only_and_brings_routing_closer(models):
    before, after = tensors(models["merged"]), tensors(models["calibrated"])
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith("mlp.gate.weight")}
    data, sources = texts(models["base"].parent), [models["math"], models["code"]]
    reports = {name: harc.diagnose(models[name], sources, data) for name in ("merged", "calibrated")}
    for domain in (0, 1):
        assert sum(reports["calibrated"].kl[domain]) < sum(reports["merged"].kl[domain])


def test_routing_is_measured_on_the_softmax_of_all_logits(models):
    data = [texts(models["base"].parent)[0][:10]]
    report = harc.diagnose(models["merged"], [models["math"]], data)
    of_source, of_merged = (router_logits(models[name], data[0]) for name in ("math", "merged"))
    for layer, (source, merged) in enumerate(zip(of_source, of_merged, strict=True)):
        log_p, log_q = source.double().log_softmax(-1), merged.double().log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        assert report.kl[0][layer] == pytest.approx(float(kl), rel=1e-3)
        chosen = [torch.zeros_like(z).scatter(1, z.topk(4).indices, 1) for z in (source, merged)]
        share = (chosen[0] != chosen[1]).any(1).double().mean()
        assert report.mismatch[0][layer] == pytest.approx(float(share), abs=5e-3)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_writes_what_transformers_writes(models):
    """Greedily, for the trained model and the merged and calibrated one."""
    written = []
    for kind in ("transformers", "vllm"):
        command = [sys.executable, "-c", ENGINE, kind, json.dumps(PROMPTS)]
        command += [str(models[name]) for name in ("base", "calibrated")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        written.append(json.loads(done.stdout.splitlines()[-1]))
    assert written[0] == written[1]
    assert len({text for (text,) in written[0][0]}) > 1
