import importlib.util

import pytest
import torch

from eval.config import EngineConfig
from eval.engines import EngineError, load_engine, request_seed
from eval.engines.base import fit_context, model_context
from eval.engines.transformers_engine import SeededGumbel

PROMPTS = ["<|user|>\nOne?\n<|assistant|>\n", "<|user|>\nAnd a rather longer two?\n<|assistant|>\n"]


@pytest.fixture(scope="module")
def engine(model):
    engine = load_engine(EngineConfig(kind="transformers", batch_size=6), model)
    yield engine
    engine.close()


def test_samples_repeat_and_do_not_depend_on_their_neighbours(engine):
    settings = {"n": 4, "temperature": 1.0, "max_tokens": 12, "seed": 5}
    together = engine.generate(PROMPTS, **settings)
    assert together == engine.generate(PROMPTS, **settings)
    assert together[1:] == engine.generate(PROMPTS[1:], **settings)
    assert together != engine.generate(PROMPTS, **{**settings, "seed": 6})
    assert len(set(together[0])) > 1


def test_without_temperature_it_is_the_models_greedy_text(engine, tokenizer):
    (texts,) = engine.generate(PROMPTS[:1], n=3, temperature=0.0, max_tokens=8)
    inputs = tokenizer(PROMPTS[0], add_special_tokens=False, return_tensors="pt")["input_ids"]
    expected = engine.model.generate(inputs, do_sample=False, max_new_tokens=8)[0, inputs.shape[1] :]
    assert texts == [tokenizer.decode(expected, skip_special_tokens=True)] * 3


def test_a_stop_string_ends_the_text_and_is_not_in_it(engine):
    (texts,) = engine.generate(PROMPTS[:1], n=1, temperature=0.0, max_tokens=8)
    stop = texts[0][3:5]
    (stopped,) = engine.generate(PROMPTS[:1], n=1, temperature=0.0, max_tokens=8, stop=[stop])
    assert stopped == [texts[0][: texts[0].find(stop)]]


def test_gumbel_noise_draws_from_the_softmax():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    draws = SeededGumbel(range(20_000), temperature=0.5)(None, logits.expand(20_000, 3)).argmax(dim=1)
    shares = torch.bincount(draws, minlength=3) / 20_000
    assert torch.allclose(shares, torch.softmax(logits[0] / 0.5, dim=0), atol=0.01)


def test_a_prompt_that_fills_the_context_is_refused_and_a_long_one_gets_what_is_left():
    assert fit_context([10, 90], context=100, max_tokens=50) == [50, 10]
    with pytest.raises(EngineError, match="prompt 1 has 100 tokens and the model's context holds 100"):
        fit_context([10, 100], context=100, max_tokens=50)


def test_a_context_is_never_longer_than_the_models_own(model):
    assert [model_context(model, wanted) for wanted in (None, 100, 10_000)] == [2048, 100, 2048]


def test_a_prompts_seed_is_its_own():
    assert request_seed(0, "a") == request_seed(0, "a")
    assert len({request_seed(seed, prompt) for seed in (0, 1) for prompt in ("a", "b")}) == 4


def test_what_cannot_be_opened_says_why(tmp_path, model, monkeypatch):
    with pytest.raises(EngineError, match="no such checkpoint directory"):
        load_engine(EngineConfig(), tmp_path / "none")
    with pytest.raises(EngineError, match=r"no config\.json"):
        load_engine(EngineConfig(), tmp_path)
    with pytest.raises(EngineError, match="unknown engine 'vlm': choose vllm or transformers"):
        load_engine(EngineConfig(kind="vlm"), model)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else find_spec(name))
    with pytest.raises(EngineError, match=r"make setup.*evaluate\.engine=transformers"):
        load_engine(EngineConfig(), model)
