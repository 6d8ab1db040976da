"""Quantised checkpoints are merged and calibrated as what they stand for; only routers change in a calibrated one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import harc
from harc.checkpoint import CheckpointError, dequantised, open_checkpoint
from harc.models.streaming import LayerStream
from tests.harc.tiny_models import family, text

BLOCK = (16, 12)


def to_fp8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix in blocks of its own scale, the last ones smaller."""
    high, wide = (-(-size // block) for size, block in zip(weight.shape, BLOCK, strict=True))
    stored, scales = torch.empty(weight.shape, dtype=torch.float8_e4m3fn), torch.empty(high, wide)
    for i in range(high):
        for j in range(wide):
            part = (slice(i * BLOCK[0], (i + 1) * BLOCK[0]), slice(j * BLOCK[1], (j + 1) * BLOCK[1]))
            scales[i, j] = weight[part].abs().max() / 448
            stored[part] = (weight[part] / scales[i, j]).to(torch.float8_e4m3fn)
    return stored, scales


def plain(stored: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Entry by entry."""
    values = stored.float()
    for i in range(len(values)):
        for j in range(values.shape[1]):
            values[i, j] *= scales[i // BLOCK[0], j // BLOCK[1]]
    return values.bfloat16()


def quantised_fp8(folder: Path, out: Path) -> tuple[Path, Path]:
    """A checkpoint in FP8, and the bfloat16 one that it stands for."""
    tensors = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
    small, wide = {}, {}
    for name, value in tensors.items():
        if value.ndim == 2 and "gate.weight" not in name and "layers" in name:
            small[name], small[f"{name}_scale_inv"] = to_fp8(value)
            wide[name] = plain(small[name], small[f"{name}_scale_inv"])
        else:
            small[name] = wide[name] = value.bfloat16()
    config = json.loads((folder / "config.json").read_text())
    settings = {"quantization_config": {"quant_method": "fp8", "weight_block_size": list(BLOCK)}}
    for place, content, extra in (("fp8", small, settings), ("bf16", wide, {})):
        (out / place).mkdir(parents=True)
        save_file(content, out / place / "model.safetensors", metadata={"format": "pt"})
        (out / place / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16", **extra}))
    return out / "fp8", out / "bf16"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> list[tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("fp8")
    return [quantised_fp8(path, folder / f"q{path.name}") for path in family("qwen3_moe", folder)]


def test_fp8_is_read_as_what_it_stands_for(pairs) -> None:
    for small, wide in pairs:
        found, expected = dequantised(open_checkpoint(small)), open_checkpoint(wide)
        assert list(found) == list(expected)
        for name in expected:
            assert torch.equal(found.read(name), expected.read(name)), name
            assert found.tensors[name].shape == expected.tensors[name].shape
            if len(expected.tensors[name].shape) == 2:
                assert torch.equal(found.read_rows(name, 3, 7), expected.read_rows(name, 3, 7))


def test_fp8_is_merged_calibrated_and_diagnosed_like_bfloat16(pairs, tmp_path) -> None:
    data = [text(seed=0), text(seed=1)]
    of = {}
    for which, kind in enumerate(("fp8", "bf16")):
        merged, *sources = [pair[which] for pair in pairs]
        harc.merge("ties", sources, merged, tmp_path / f"{kind} merge", progress=False)
        harc.calibrate(merged, sources, data, out=tmp_path / f"{kind} out", progress=False)
        of[kind] = harc.diagnose(tmp_path / f"{kind} out", sources, data).kl
    assert of["fp8"] == of["bf16"]
    for name in ("merge", "out"):
        small, wide = (open_checkpoint(tmp_path / f"{kind} {name}") for kind in ("fp8", "bf16"))
        assert ("quantization_config" in small.config) == (name == "out")
        assert all(torch.equal(dequantised(small).read(key), wide.read(key)) for key in wide)
    before, after = open_checkpoint(pairs[0][0]), open_checkpoint(tmp_path / "fp8 out")
    changed = [key for key in before if not torch.equal(before.read(key).float(), after.read(key).float())]
    assert changed == [f"model.layers.{layer}.mlp.gate.weight" for layer in range(3)]


def test_mxfp4_is_what_transformers_makes_of_it(tmp_path) -> None:
    """And a calibration of it changes the routers only."""
    paths = family("gpt_oss", tmp_path, intermediate_size=32)
    generator = torch.Generator().manual_seed(0)
    for path in paths:
        tensors = {name: value for file in path.glob("*.safetensors") for name, value in load_file(file).items()}
        for name in [name for name in tensors if name.endswith("_proj") and "experts" in name]:
            experts, inputs, outputs = tensors.pop(name).shape
            shape = (experts, outputs, inputs // 32, 16)
            tensors[f"{name}_blocks"] = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
            tensors[f"{name}_scales"] = torch.randint(120, 126, shape[:3], generator=generator, dtype=torch.uint8)
        for file in path.glob("model*"):
            file.unlink()
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))
    checkpoint = open_checkpoint(paths[0])
    view = dequantised(checkpoint)
    names = [name for name in view if name.endswith("_proj")]
    assert len(names) == 6
    for name in names:
        packed = [checkpoint.read(name + ending) for ending in ("_blocks", "_scales")]
        assert torch.equal(view.read(name), convert_moe_packed_tensors(*packed))
        assert tuple(view.read(name).shape) == view.tensors[name].shape
        assert torch.equal(view.read_rows(name, 2, 4), view.read(name)[2:4])
    data = [text(seed=0), text(seed=1)]
    report = harc.calibrate(paths[0], paths[1:], data, out=tmp_path / "out", progress=False)
    assert all(layer.kl_after < layer.kl_before for layer in report.layers)
    after = open_checkpoint(tmp_path / "out")
    changed = {name for name in checkpoint if not torch.equal(checkpoint.read(name), after.read(name))}
    routers = LayerStream(paths[0]).routers.values()
    assert changed == {key for router in routers for key in router.keys}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_method": "gptq"}, r"config\.json: quantised by 'gptq'"),
        ({"quant_method": "fp8"}, r"config\.json: fp8 with weight_block_size None"),
        ({"quant_method": "fp8", "weight_block_size": [8, 8]}, r"scale .* has shape .*, expected"),
        (None, r"model\.safetensors: tensor .* without a scale that is known"),
    ],
)
def test_what_cannot_be_dequantised_is_refused_by_name(change, message, pairs, tmp_path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(pairs[0][0], folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = change
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    sources = [small for small, _ in pairs[1:]]
    for call in (
        lambda: harc.merge("average", [folder, sources[0]], None, tmp_path / "out", progress=False),
        lambda: harc.calibrate(folder, sources, [text(), text()], out=tmp_path / "out", progress=False),
        lambda: harc.diagnose(folder, sources, [text(), text()]),
    ):
        with pytest.raises(CheckpointError, match=message):
            call()
        assert not (tmp_path / "out").exists()
