"""What the authors' precision changes: calibrate.dtype=float32, routers passed on as solved, against bf16 as written.

    python -m benchmarks.precision [--hidden 2048 --layers 2 --experts 64 --tokens 2304]

A random OLMoE in bf16, two sources with every weight moved at random, their average as the merge. Printed for each
layer: by how much the two calibrations' routers differ, relative to what calibration changed, and the routing KL on
the calibration tokens that each leaves.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import harc
from harc.checkpoint import open_checkpoint
from harc.tokens import TokenSequence

_MOVED = 0.02  # of each weight's norm, in a source


def main() -> None:
    """Makes the models in a temporary folder, calibrates twice, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("hidden", 2048), ("layers", 2), ("experts", 64), ("tokens", 2304)):
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        _compare(Path(folder), asked)


def _compare(folder: Path, asked: argparse.Namespace) -> None:
    paths = _models(folder, asked)
    streams = torch.Generator().manual_seed(0)
    data = [
        [TokenSequence(torch.randint(0, 500, (256,), generator=streams), 256) for _ in range(asked.tokens // 256)]
        for _ in range(2)
    ]
    options = {"bf16, as written": {}, "float32, as solved": {"dtype": torch.float32, "rounded": False}}
    reports, written = [], []
    for number, more in enumerate(options.values()):
        out = folder / f"calibrated-{number}"
        reports.append(harc.calibrate(paths[0], paths[1:], data, out=out, progress=False, **more))
        written.append(open_checkpoint(out))
    merged = open_checkpoint(paths[0])
    for layer, (one, other) in enumerate(zip(*(report.layers for report in reports), strict=True)):
        key = f"model.layers.{layer}.mlp.gate.weight"
        before, bf16, fp32 = (checkpoint.read(key).double() for checkpoint in (merged, *written))
        share = ((fp32 - bf16).norm() / (bf16 - before).norm()).item()
        print(
            f"layer {layer}: routers differ by {100 * share:.2f} % of what calibration changed; routing KL "
            f"{one.kl_before:.6f} -> {one.kl_after:.6f} ({next(iter(options))}), {other.kl_before:.6f} -> "
            f"{other.kl_after:.6f} ({list(options)[1]}); {one.seconds + one.forward_seconds:.0f} s and "
            f"{other.seconds + other.forward_seconds:.0f} s"
        )


def _models(folder: Path, asked: argparse.Namespace) -> list[Path]:
    """Average and sources."""
    shape = AutoConfig.for_model(
        "olmoe", vocab_size=512, hidden_size=asked.hidden, intermediate_size=asked.hidden // 8,
        num_hidden_layers=asked.layers, num_attention_heads=16, num_key_value_heads=16, num_experts=asked.experts,
        num_experts_per_tok=8, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    states = []
    for seed in (1, 2):
        moving = torch.Generator().manual_seed(seed)
        states.append({name: _moved(value, moving) for name, value in base.state_dict().items()})
    states.insert(0, {name: (value + states[1][name]) / 2 for name, value in states[0].items()})
    paths = [folder / name for name in ("merged", "one", "other")]
    for path, state in zip(paths, states, strict=True):
        base.load_state_dict(state)
        base.to(torch.bfloat16).save_pretrained(path)
        base.to(torch.float32)
    return paths


def _moved(value: torch.Tensor, moving: torch.Generator) -> torch.Tensor:
    noise = torch.randn(value.shape, generator=moving)
    return value + _MOVED * value.norm() / noise.norm() * noise


if __name__ == "__main__":
    main()
