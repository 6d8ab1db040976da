"""Lazy reading of a safetensors checkpoint, single file or sharded, from a local folder or the Hugging Face hub.

A safetensors file is an 8-byte little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, and the
tensors' bytes. Only headers are read on opening; bytes are read (not memory-mapped, so that resident memory is what is
held and no more) when a tensor or some of its rows are asked for.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
# Small JSON files beside the weights: a damaged one would be copied into every model made of this one.
_SIDE_FILES = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, the tensor and what to do."""


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. start: position of its first byte in `file`."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def bytes(self) -> int:
        """Size of the tensor, in bytes."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk. `tensors` maps each published tensor name, in natural order, to where its bytes lie."""

    source: str
    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    @property
    def bytes(self) -> int:
        """Size of all tensors together, in bytes."""
        return sum(info.bytes for info in self.tensors.values())

    @property
    def files(self) -> list[Path]:
        """The weight files, in order."""
        return sorted({info.file for info in self.tensors.values()})

    def read(self, name: str) -> Tensor:
        """Reads one tensor, in the dtype it is stored in.

        Raises:
            CheckpointError: no such tensor, or its bytes cannot be read.
        """
        info = self._info(name)
        return self._read(name, info, info.start, info.shape)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Reads rows start … stop − 1 (first dimension) of a tensor, and no other bytes."""
        info = self._info(name)
        if not info.shape or not 0 <= start <= stop <= info.shape[0]:
            raise CheckpointError(f"{info.file}: rows {start}:{stop} of {name}, whose shape is {info.shape}")
        row_bytes = prod(info.shape[1:]) * info.dtype.itemsize
        return self._read(name, info, info.start + start * row_bytes, (stop - start, *info.shape[1:]))

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise CheckpointError(f"{self.source}: no tensor named {name}")
        return self.tensors[name]

    def _read(self, name: str, info: TensorInfo, position: int, shape: tuple[int, ...]) -> Tensor:
        buffer = torch.empty(prod(shape) * info.dtype.itemsize, dtype=torch.uint8)
        view = buffer.numpy().data
        done = 0
        try:
            with info.file.open("rb", buffering=0) as file:
                file.seek(position)
                while done < len(view):
                    count = file.readinto(view[done:])
                    if not count:
                        raise CheckpointError(f"{info.file}: the file ends inside tensor {name}; fetch it again")
                    done += count
        except OSError as error:
            raise CheckpointError(f"{info.file}: cannot read tensor {name}: {error.strerror}") from error
        return buffer.view(info.dtype).reshape(shape)


def open_checkpoint(source: str | Path | Checkpoint, *, revision: str | None = None) -> Checkpoint:
    """Opens a checkpoint by its local folder or its id on the Hugging Face hub (safetensors and JSON files only).

    Every weight file's header is read and held against the index and the file's size, so that a missing or truncated
    shard is found here.

    Raises:
        CheckpointError: no such folder or id, no config.json, no safetensors (pickled weights are never read), a shard
            that is missing, truncated or malformed.
    """
    if isinstance(source, Checkpoint):
        return source
    folder = _folder(str(source), revision)
    config = read_json(folder / "config.json")
    for name in _SIDE_FILES:
        if (folder / name).is_file():
            read_json(folder / name)
    tensors: dict[str, TensorInfo] = {}
    index = folder / INDEX_NAME
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map or not all(map(_is_text, weight_map.values())):
            raise CheckpointError(f"{index}: expected a `weight_map` from tensor names to files; fetch it again")
        for shard in sorted(set(weight_map.values())):
            header = read_header(_shard_path(folder, shard, index))
            wanted = [name for name, file in weight_map.items() if file == shard]
            absent = next((name for name in wanted if name not in header), None)
            if absent is not None:
                raise CheckpointError(f"{folder / shard}: tensor {absent} is missing; {INDEX_NAME} says it is here")
            tensors.update({name: header[name] for name in wanted})
    else:
        tensors = read_header(_single_file(folder))
    ordered = dict(sorted(tensors.items(), key=lambda item: natural_key(item[0])))
    return Checkpoint(str(source), folder, config, ordered)


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Reads a safetensors file's header and checks it against the file's size.

    Raises:
        CheckpointError: a file that is missing, truncated or no safetensors file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise CheckpointError(f"{file}: truncated or no safetensors file ({size} bytes); fetch it again")
            header = json.loads(stream.read(length))
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file}: its safetensors header is damaged; fetch it again") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: its safetensors header is not a JSON object; fetch it again")
    tensors = {
        name: _tensor_info(file, name, entry, 8 + length, size)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    if not tensors:
        raise CheckpointError(f"{file}: holds no tensors")
    return tensors


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        CheckpointError: a file that is missing, no JSON or no object.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not valid JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: expected a JSON object; fetch it again")
    return value


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts names with their numbers as numbers: layers.2 before layers.10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def _tensor_info(file: Path, name: str, entry: Any, data_start: int, size: int) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: the header entry of tensor {name} is malformed; fetch it again") from error
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise CheckpointError(f"{file}: tensor {name} has shape {shape} and offsets {begin}, {end}; fetch it again")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{file}: tensor {name} has dtype {dtype}; supported are {', '.join(DTYPES)}")
    info = TensorInfo(file, DTYPES[dtype], shape, data_start + begin)
    if end - begin != info.bytes:
        raise CheckpointError(f"{file}: tensor {name} of shape {shape} and {dtype} is given {end - begin} bytes")
    if data_start + end > size:
        raise CheckpointError(
            f"{file}: truncated inside tensor {name}: {size} bytes of at least {data_start + end}; fetch it again"
        )
    return info


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _folder(source: str, revision: str | None) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{source}: a checkpoint is a folder, this is a file")
    if not _HUB_ID.fullmatch(source):
        raise CheckpointError(f"{source}: no such folder (and not a hub id such as allenai/OLMoE-1B-7B-0125)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=_HUB_PATTERNS))
    except Exception as error:  # the hub client raises from several unrelated hierarchies
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{source}: no such folder, and fetching it from the hub failed: {reason[0]}") from error


def _shard_path(folder: Path, shard: str, index: Path) -> Path:
    if Path(shard).name != shard:
        raise CheckpointError(f"{index}: shard {shard!r} is not a file name inside the folder")
    if not (folder / shard).is_file():
        raise CheckpointError(f"{folder / shard}: this shard is missing; {INDEX_NAME} names it")
    return folder / shard


def _single_file(folder: Path) -> Path:
    if (folder / SINGLE_NAME).is_file():
        return folder / SINGLE_NAME
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(f"{folder}: an adapter, not a full model; merge it into its base model first")
    if shards := sorted(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder}: has {shards[0].name} but neither {SINGLE_NAME} nor {INDEX_NAME}")
    if pickled := _first(folder, ("*.bin", "*.pt", "*.pth", "*.ckpt")):
        raise CheckpointError(
            f"{folder}: only pickled weights ({pickled.name}), which can run code when read and are never opened; "
            "save the model again with save_pretrained, which writes safetensors"
        )
    raise CheckpointError(f"{folder}: no weights: expected {SINGLE_NAME} or {INDEX_NAME}")


def _first(folder: Path, patterns: Iterable[str]) -> Path | None:
    return next((file for pattern in patterns for file in sorted(folder.glob(pattern))), None)
