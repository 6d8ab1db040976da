"""What every training stage is told: one run of TRL's SFTTrainer, and in how many processes."""

from dataclasses import dataclass


@dataclass
class TrainConfig:
    """One run of TRL's SFTTrainer, in float32 on a CPU, in bf16 autocast over float32 master weights on a GPU."""

    steps: int | None = None
    """Optimizer steps, 1 or more. Either this or `epochs` is set."""

    epochs: float | None = None
    """Passes over the data, above 0."""

    batch_size: int = 32
    """Sequences per optimizer step, over all processes."""

    micro_batch_size: int | None = None
    """Sequences that a process takes at once (null: its whole share of the batch)."""

    learning_rate: float = 2e-5
    """Of AdamW, at its highest."""

    schedule: str = "linear"
    """transformers' name of the learning rate's schedule."""

    warmup_ratio: float = 0.03
    """Share of the steps in which the learning rate rises, from 0 to 1."""

    weight_decay: float = 0.0
    """Of AdamW."""

    max_length: int = 4096
    """Tokens per sequence; longer ones are cut on the right."""

    packing: bool = False
    """Whether several records fill a sequence of `max_length`."""

    load_balancing: float = 0.0
    """Coefficient of the routers' load-balancing loss (0: off)."""

    responses_only: bool = True
    """Whether assistant turns alone carry loss."""

    dtype: str = "bfloat16"
    """Of the checkpoint that is written: float32, bfloat16 or float16."""

    gradient_checkpointing: bool = False
    """Whether activations are computed again in the backward pass, to save memory."""

    chat_template: str | None = None
    """A Jinja file, or the name of one in conf/chat_templates, instead of the tokenizer's own (null: that)."""

    attention: str | None = None
    """transformers' name of the attention kernel (null: its default)."""

    save_steps: int = 500
    """Steps between checkpoints that a killed run resumes from."""

    log_steps: int = 10
    """Steps between lines of loss.jsonl."""

    seed: int = 0
    """Of random weights, dropout and the order of the data."""


@dataclass
class LaunchConfig:
    """How a training stage is launched. It must not change the result, so it is part of no stage's key."""

    processes: int = 1
    """Number of processes; more than one are started by `accelerate launch`."""

    nodes: int = 1
    """Machines that share the processes evenly; more than one with engine=slurm or engine=ray."""

    accelerate: str = "fsdp"
    """File of conf/accelerate that they are started with: fsdp or zero2."""

    def __post_init__(self) -> None:
        """Refuses a division that does not come out even."""
        if self.nodes < 1 or self.processes % self.nodes:
            raise ValueError(
                f"launch.processes={self.processes} on launch.nodes={self.nodes}: expected a multiple of 1 node or more"
            )
