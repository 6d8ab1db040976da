"""Atomic, streaming writing of a checkpoint.

Names, dtypes and shapes are known before the first tensor, so every shard's header and size are too: tensors go
straight to their place in the file, in any order, and memory holds one of them at a time.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from harc.checkpoint.read import DTYPES, INDEX_NAME, SINGLE_NAME, CheckpointError, TensorInfo, natural_key
from harc.files import sync

MAX_SHARD_BYTES = 5_000_000_000
_CODES = {dtype: code for code, dtype in DTYPES.items()}


@contextlib.contextmanager
def atomic_directory(out: str | Path, *, needed_bytes: int = 0) -> Iterator[Path]:
    """Yields a temporary directory beside `out` that gets the name `out` when the block ends without an error.

    Files and directory are flushed to disk before the rename. On an error the temporary directory is removed; a killed
    process leaves at most a directory named `.<name>.partial-…`, never one named `out`.

    Raises:
        CheckpointError: `out` is there already and not an empty directory, or the disk has less than `needed_bytes`.
    """
    final = Path(out).expanduser().absolute()
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise CheckpointError(f"{out}: there already; choose another name or remove it")
    final.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(final.parent).free
    if needed_bytes > free:
        raise CheckpointError(f"{out}: needs {needed_bytes / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free")
    partial = Path(tempfile.mkdtemp(prefix=f".{final.name}.partial-", dir=final.parent))
    try:
        partial.chmod(0o777 & ~_umask())
        yield partial
        for file in sorted(partial.rglob("*")):
            sync(file)
        sync(partial)
        partial.rename(final)
        sync(final.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


class CheckpointWriter:
    """Writes tensors of known names, dtypes and shapes into one safetensors file, or several with an index.

    Disk space is reserved when the writer opens. `close` fails when a tensor was not written; used in a `with` block it
    is called at the end.
    """

    def __init__(
        self,
        folder: Path,
        specs: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
        *,
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ) -> None:
        self.folder = folder
        self._shards = _plan(specs, max_shard_bytes)
        self._places: dict[str, TensorInfo] = {}
        self._waiting = set(specs)
        count = len(self._shards)
        for number, names in enumerate(self._shards, start=1):
            file = folder / (SINGLE_NAME if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors")
            self._places.update(reserve_file(file, {name: specs[name] for name in names}))

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()

    def write(self, name: str, tensor: Tensor) -> None:
        """Writes one tensor, cast to the dtype announced for it.

        Raises:
            CheckpointError: a name or shape that was not announced, a value that is not finite, or a full disk.
        """
        if name not in self._waiting:
            raise CheckpointError(f"{name}: {'written twice' if name in self._places else 'not announced'}")
        write_tensor(self._places[name], name, tensor)
        self._waiting.discard(name)

    def close(self) -> None:
        """Writes the index of a sharded checkpoint."""
        if self._waiting:
            first = min(self._waiting)
            raise CheckpointError(f"{self.folder}: {len(self._waiting)} tensors not written, first {first}")
        if len(self._shards) > 1:
            total = sum(info.bytes for info in self._places.values())
            weight_map = {name: info.file.name for name, info in self._places.items()}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (self.folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_tensor(place: TensorInfo, name: str, tensor: Tensor) -> None:
    """Writes a tensor's bytes at its place in an existing safetensors file.

    Raises:
        CheckpointError: another shape, values that are not finite (also after the cast), or a full disk.
    """
    if tuple(tensor.shape) != place.shape:
        raise CheckpointError(f"{name}: shape {tuple(tensor.shape)}, expected {place.shape}")
    stored = tensor.detach().to("cpu", place.dtype).contiguous()
    if stored.dtype.is_floating_point and not is_finite(stored):
        raise CheckpointError(f"{name}: NaN or Inf in the values to write as {place.dtype}")
    view = stored.reshape(-1).view(torch.uint8).numpy().data
    try:
        with place.file.open("r+b", buffering=0) as file:
            file.seek(place.start)
            done = 0
            while done < len(view):
                done += file.write(view[done:])
    except OSError as error:
        raise CheckpointError(f"{place.file}: cannot write tensor {name}: {error.strerror}") from error


def is_finite(tensor: Tensor) -> bool:
    """Says whether every value is finite, in one pass and without a temporary of the tensor's size."""
    if tensor.numel() == 0:
        return True
    flat = tensor.reshape(-1)
    if tensor.dtype.itemsize == 1:  # fp8 has no reductions
        return all(bool(torch.isfinite(part.float()).all()) for part in flat.split(1 << 20))
    low, high = torch.aminmax(flat)  # NaN propagates
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _plan(specs: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], max_shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = []
    size = 0
    for name in sorted(specs, key=natural_key):
        dtype, shape = specs[name]
        count = prod(shape) * dtype.itemsize
        if not shards or size + count > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += count
    return shards


def reserve_file(
    file: Path, specs: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> dict[str, TensorInfo]:
    """Makes a safetensors file whose tensors are still to be written; where each of them belongs.

    Raises:
        CheckpointError: a full disk.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    begins, position = {}, 0
    for name in sorted(specs, key=lambda name: -specs[name][0].itemsize):  # wide dtypes first: all stay aligned
        dtype, shape = specs[name]
        begins[name], position = position, position + prod(shape) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [begins[name], position]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    try:
        with file.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.flush()
            os.posix_fallocate(stream.fileno(), 0, max(start + position, 1))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot reserve {position / 1e9:.2f} GB: {error.strerror}") from error
    return {name: TensorInfo(file, *specs[name], start + begin) for name, begin in begins.items()}


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
