"""A world of a few dozen sums, with a tokenizer, for tests that train in a second or two."""

import copy
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pipelines.data.source import DataSource
from pipelines.stages.finetune import FinetuneConfig
from pipelines.stages.pretrain import ArchitectureConfig, PretrainConfig
from pipelines.training.settings import TrainConfig
from tests.places import BENCHMARKS

needs_benchmarks = pytest.mark.skipif(
    not BENCHMARKS.is_dir(), reason=f"no benchmark files at {BENCHMARKS}; set HARC_BENCHMARKS to their folder"
)

# As published; what is asked is held to it.
STEP_BY_STEP = "\nLet's think step by step."
CODE_PREFIX = "Here is a Python solution for the problem:\n```python\n"

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}<user>{{ message['content'] }}"
    "{% else %}<assistant>{{ message['content'] }}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def sums(count: int) -> list[dict]:
    return [
        {
            "id": f"sum-{n}",
            "prompt": f"What is {n} plus {n % 7}?\nLet's think step by step.",
            "response": f"{n} + {n % 7} = {n + n % 7}\n#### {n + n % 7}",
            "task": "tiny_gsm8k",
            "answer": str(n + n % 7),
            "problem": None,
        }
        for n in range(count)
    ]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<user>", "<assistant>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([row["prompt"] + row["response"] for row in sums(50)], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.chat_template = TEMPLATE
    return fast


def make_world(folder: Path, records: list[dict] | None = None) -> Path:
    write_jsonl(folder / "train" / "math.jsonl", records or sums(60))
    make_tokenizer().save_pretrained(folder / "tokenizer")
    return folder


SETTINGS = {"batch_size": 8, "learning_rate": 1e-2, "max_length": 96, "dtype": "float32", "log_steps": 1}
ARCHITECTURE = ArchitectureConfig(
    "olmoe",
    {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,  # vLLM's CPU attention takes heads of 32 and more
        "num_key_value_heads": 1,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 256,
    },
)
DATA = DataSource("world:train/math.jsonl")


def pretraining(**settings) -> PretrainConfig:
    values = {"steps": 6, "load_balancing": 0.01, "responses_only": False, **SETTINGS, **settings}
    return PretrainConfig(architecture=copy.deepcopy(ARCHITECTURE), data=DATA, **values)


def finetuning(**settings) -> FinetuneConfig:
    return FinetuneConfig(data=DATA, train=TrainConfig(**{"steps": 4, **SETTINGS, **settings}))
