"""What a checkpoint takes over from another one: the files beside the weights, and weights that did not change."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from harc.checkpoint.read import INDEX_NAME, Checkpoint, CheckpointError
from harc.checkpoint.write import atomic_directory, write_tensor

_EXTRAS = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template*",
    "*.model",
)


def copy_extras(checkpoint: Checkpoint, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Copies config, generation config, tokenizer and chat template into `folder`; `dtype` is noted in the config."""
    config = dict(checkpoint.config)
    if dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = str(dtype).removeprefix("torch.")
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    else:
        shutil.copyfile(checkpoint.folder / "config.json", folder / "config.json")
    for pattern in _EXTRAS:
        for source in checkpoint.folder.glob(pattern):
            _copy_own(checkpoint, source, folder / source.name)


def _copy_own(checkpoint: Checkpoint, source: Path, target: Path) -> None:
    """Copies a file, or a folder of named chat templates, that belongs to the checkpoint.

    A link of a downloaded checkpoint might lead to any file of this machine, which would then be published.
    """
    if source.is_dir() and not source.is_symlink():
        target.mkdir(exist_ok=True)
        for inner in source.iterdir():
            _copy_own(checkpoint, inner, target / inner.name)
        return
    if source.is_symlink() and not source.resolve().is_relative_to(_home(checkpoint.folder)):
        raise CheckpointError(
            f"{source}: a link to {source.resolve()}, outside of the checkpoint, is not copied: put the file there"
        )
    shutil.copyfile(source, target)


def _home(folder: Path) -> Path:
    """Where the files of a checkpoint may lie: its folder, or that of its repository in a hub cache (blobs/ there)."""
    folder = folder.resolve()
    in_cache = folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--")
    return folder.parents[1] / "blobs" if in_cache else folder


def replace_tensors(checkpoint: Checkpoint, out: str | Path, tensors: Mapping[str, Tensor]) -> Path:
    """Makes the checkpoint `out` from another one with some tensors replaced, atomically.

    A shard without a replaced tensor is hard-linked (copied where links are impossible), never rewritten; one with some
    is copied and only their bytes are overwritten. Values are cast to the dtype stored.

    Raises:
        CheckpointError: a tensor the checkpoint lacks, another shape, values that are not finite, `out` there already.
    """
    for name, tensor in tensors.items():
        if name not in checkpoint:
            raise CheckpointError(f"{checkpoint.source}: no tensor named {name} to replace")
        if tuple(tensor.shape) != (expected := checkpoint.tensors[name].shape):
            raise CheckpointError(f"{name}: shape {tuple(tensor.shape)}, expected {expected}")
    touched = {checkpoint.tensors[name].file for name in tensors}
    needed = sum(file.stat().st_size for file in touched)
    with atomic_directory(out, needed_bytes=needed) as folder:
        copy_extras(checkpoint, folder)
        for file in checkpoint.files:
            if file in touched:
                shutil.copyfile(file, folder / file.name)
            else:
                _link(file, folder / file.name)
        if (checkpoint.folder / INDEX_NAME).is_file():
            shutil.copyfile(checkpoint.folder / INDEX_NAME, folder / INDEX_NAME)
        for name, tensor in tensors.items():
            place = checkpoint.tensors[name]
            moved = type(place)(folder / place.file.name, place.dtype, place.shape, place.start)
            write_tensor(moved, name, tensor)
    return Path(out)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)  # hub caches hold symbolic links
    except OSError:
        shutil.copyfile(source, target)
