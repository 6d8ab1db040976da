"""What a stage is expected to need, from parameter counts: for `plan=true` and for the checks before a run."""

from dataclasses import dataclass

from pipelines.config import SizeConfig
from pipelines.stage import Node

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SMALL_GB = 0.05  # data, results, reports: text files
ADAM_BYTES = 8  # two fp32 moments a parameter
CHECKPOINTS = 2  # of the trainer, with fp32 weights: the last one and the one being written
CALIBRATION_TOKENS = 7_000 * 512  # the paper's samples a domain, at about 512 tokens each


@dataclass(frozen=True)
class Estimate:
    """Gigabytes (1e9 bytes), memory on host and devices together."""

    memory_gb: float
    disk_gb: float


def estimate(node: Node, size: SizeConfig, dtype: str) -> Estimate:
    """Memory and disk of one stage of one model size.

    Training holds weights and gradients in the training dtype, fp32 master weights where that is a 16-bit one, and two
    fp32 moments. Data-free merges hold a few tensors. Calibration holds the hidden states of all tokens in the model's
    dtype, and one model. The engine holds the weights and its cache.
    """
    weight = BYTES[dtype]
    model = size.parameters * weight / 1e9
    layer = model / size.layers
    domains = sum(name.startswith("source_") for name in node.inputs) or 2
    hidden = domains * CALIBRATION_TOKENS * size.hidden * weight / 1e9 if dtype != "float32" else 0.1
    train = size.parameters * (2 * weight + ADAM_BYTES + (4 if weight == 2 else 0)) / 1e9
    table = {
        "world": Estimate(0.5, SMALL_GB),
        "pretrain": Estimate(train, model),
        "finetune": Estimate(train, model + CHECKPOINTS * size.parameters * (4 + ADAM_BYTES) / 1e9),
        "sample": Estimate(model * 1.3, SMALL_GB),
        "merge": Estimate(4 * layer, model),
        "calibrate": Estimate(model + 2 * hidden, size.layers * size.experts * size.hidden * weight / 1e9),
        "swap": Estimate(layer, size.layers * size.experts * size.hidden * weight / 1e9),
        "sft": Estimate(train, model + CHECKPOINTS * size.parameters * (4 + ADAM_BYTES) / 1e9),
        "diagnose": Estimate(2 * model, SMALL_GB),
        "evaluate": Estimate(model * 1.3, SMALL_GB),
    }
    if node.stage == "cost":
        measured = Node(node.config.stage, node.label, node.config.config, node.inputs)
        return Estimate(estimate(measured, size, dtype).memory_gb, estimate(measured, size, dtype).disk_gb)
    if node.stage == "merge" and any(name.startswith("data_") for name in node.inputs):
        return Estimate(2 * model + 4 * layer, model)
    return table[node.stage]
