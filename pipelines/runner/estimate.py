"""What a stage is expected to need, from parameter counts: for `plan=true` and for the checks before a run."""

from dataclasses import dataclass

from omegaconf import MISSING

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SMALL_GB = 0.05  # data, results, reports: text files
ADAM_BYTES = 8  # two fp32 moments per parameter
LOADED_GB = 0.6  # a process that has imported torch and transformers
CHECKPOINTS = 2  # of the trainer, with fp32 weights: the last one and the one being written


@dataclass
class SizeConfig:
    """The counts and shapes of a scale's base model that estimates are made from."""

    parameters: float = MISSING
    """Parameters of the whole model, experts included."""

    layers: int = MISSING
    """Decoder layers."""

    hidden: int = MISSING
    """Width of the hidden states."""

    experts: int = MISSING
    """Routed experts per layer."""

    active: float | None = None
    """Parameters that a token is computed with (null: all)."""

    vocabulary: int = 0
    """Rows of the embeddings, and of the head."""

    expert_width: int = 0
    """Width inside an expert."""

    record_tokens: float = 512
    """Tokens of a conversation of the calibration and held-out text, about."""

    answer_tokens: float | None = None
    """Tokens of a generated answer, about (null: half of what it may have)."""

    train_tokens: float = 1e8
    """Tokens of one pass over a domain's training data."""


@dataclass(frozen=True)
class Estimate:
    """Gigabytes (1e9 bytes)."""

    memory_gb: float
    """On host and devices together, at the peak."""

    disk_gb: float
    """Of what the stage leaves."""

    scratch_gb: float = 0.0
    """Of what it writes on the way, on disk too, and removes at its end."""


@dataclass(frozen=True)
class Work:
    """What a stage has to do, whatever the machine."""

    flops: float = 0.0
    """Floating-point operations of training and of forward passes over whole texts."""

    generated: float = 0.0
    """Floating-point operations of generation, token by token."""

    gigabytes: float = 0.0
    """Read and written."""

    seconds: float = 0.0
    """Of what no core or GPU makes faster."""


@dataclass(frozen=True)
class ModelSize:
    """The sizes, in gigabytes, that stages make their estimates from."""

    size: SizeConfig
    dtype: str

    @property
    def model(self) -> float:
        """All weights, in the dtype of the checkpoint."""
        return self.size.parameters * BYTES[self.dtype] / 1e9

    @property
    def outer(self) -> float:
        """Embeddings and head."""
        return 2 * self.size.vocabulary * self.size.hidden * BYTES[self.dtype] / 1e9

    @property
    def layer(self) -> float:
        """One layer's weights."""
        return (self.model - self.outer) / self.size.layers

    @property
    def grams(self) -> float:
        """Float32 Gram matrices of the inputs of a layer's linear maps."""
        each = self.size.hidden**2 + self.size.expert_width**2
        return 4 * (self.size.experts * each + 5 * self.size.hidden**2) / 1e9

    def record(self, max_length: int | None) -> float:
        """About how many tokens a conversation has that may have so many."""
        return min(self.size.record_tokens, max_length or self.size.record_tokens)

    def answer(self, most: float) -> float:
        """About how many tokens an answer has that may have so many."""
        return most / 2 if self.size.answer_tokens is None else min(most, self.size.answer_tokens)

    def forward(self, tokens: float) -> float:
        """Floating-point operations of a forward pass over so many tokens; a training step takes three times that."""
        return 2 * (self.size.active or self.size.parameters) * tokens

    def hidden_states(self, tokens: float) -> float:
        """One layer's hidden states of so many tokens."""
        return tokens * self.size.hidden * BYTES[self.dtype] / 1e9

    @property
    def training(self) -> float:
        """Weights and gradients in float32 whatever the checkpoint is written in, and Adam's moments."""
        return self.size.parameters * (4 + 4 + ADAM_BYTES) / 1e9

    @property
    def training_checkpoints(self) -> float:
        """What a run in progress keeps on disk, to resume from."""
        return CHECKPOINTS * self.size.parameters * (4 + ADAM_BYTES) / 1e9
