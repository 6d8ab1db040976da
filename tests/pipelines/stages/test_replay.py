"""The replay stage: an evaluation whose model is routed by another one."""

import dataclasses
import json

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from eval.config import EngineConfig
from harc.models.routers import find_routers
from pipelines.stages.evaluate import EvaluateStageConfig, evaluate
from pipelines.stages.replay import ReplayConfig, replay
from tests.pipelines.small_world import ARCHITECTURE, make_tokenizer, write_jsonl


def test_a_model_that_differs_in_its_routers_alone_says_what_the_deciding_one_says(tmp_path):
    world = tmp_path / "world"
    write_jsonl(world / "tasks/sums.jsonl", [{"question": f"Add {n}.", "answer": f"#### {n}"} for n in range(4)])
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    shape = AutoConfig.for_model(
        "olmoe", **ARCHITECTURE.settings, vocab_size=len(tokenizer), initializer_range=0.5, pad_token_id=0,
        eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(shape)
    for name in ("source", "turned"):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        for router in find_routers(model).values():
            router.weight.data.neg_()
    plain = EvaluateStageConfig(
        tasks={"tiny_gsm8k": "world:tasks/sums.jsonl"}, samples=1, temperature=0.0, max_new_tokens=12,
        engine=EngineConfig(kind="transformers", dtype="float32"),
    )  # fmt: skip

    def texts(function, config, **models) -> list[str]:
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        function(config, {"world": world, **{key: tmp_path / name for key, name in models.items()}}, out)
        rows = (out / "samples/tiny_gsm8k.jsonl").read_text().splitlines()
        return [json.loads(row)["responses"][0]["text"] for row in rows]

    settings = {one.name: getattr(plain, one.name) for one in dataclasses.fields(plain)}
    source, turned = (texts(evaluate, plain, model=name) for name in ("source", "turned"))
    routed = texts(replay, ReplayConfig(**settings, decisions={"math": None}), model="turned", source_math="source")
    assert routed == source and all(one != other for one, other in zip(source, turned, strict=True))
