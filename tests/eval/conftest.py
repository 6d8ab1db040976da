"""Real benchmark files, a tiny OLMoE with a chat template, and an engine that says what a test tells it to."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.places import BENCHMARKS

CHAT = (
    "{% for message in messages %}{% if message.role == 'user' %}<|user|>\n{{ message.content }}\n"
    "{% else %}<|assistant|>\n{{ message.content }}{{ eos_token }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.fixture(scope="session")
def benchmarks() -> Path:
    if not BENCHMARKS.is_dir():
        pytest.skip(f"the published benchmark files are not in {BENCHMARKS} (HARC_BENCHMARKS names their folder)")
    return BENCHMARKS


@pytest.fixture(scope="session")
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|pad|>", "<|eos|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokens.train_from_iterator([path.read_text() for path in sorted(Path(__file__).parent.rglob("*.py"))], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<|pad|>", eos_token="<|eos|>")
    tokenizer.chat_template = CHAT
    return tokenizer


@pytest.fixture(scope="session")
def model(tokenizer, tmp_path_factory) -> Path:
    from transformers import OlmoeConfig, OlmoeForCausalLM

    path = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=2048,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        initializer_range=0.2,
    )
    OlmoeForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


class ScriptedEngine:
    """Answers each prompt with the texts that `script` gives for it, and keeps what it was asked."""

    def __init__(self, tokenizer, script) -> None:
        self.tokenizer = tokenizer
        self.script = script
        self.calls: list[dict] = []

    def generate(self, prompts: Sequence[str], **settings) -> list[list[str]]:
        self.calls.append({"prompts": list(prompts), **settings})
        return [self.script(prompt, settings["n"]) for prompt in prompts]

    def close(self) -> None:
        pass


@pytest.fixture
def scripted(tokenizer):
    return lambda script: ScriptedEngine(tokenizer, script)
