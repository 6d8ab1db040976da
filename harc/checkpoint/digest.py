"""What a checkpoint is, in one number: two have the same digest if and only if their tensors are the same to the bit.

    digest = SHA-256 of a line per tensor, in the order of names: name, dtype, shape, SHA-256 of its bytes

How tensors are spread over files, and the files beside them, don't count.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from harc.checkpoint.read import Checkpoint, CheckpointError, TensorInfo

_CHUNK = 1 << 22


def tensor_digests(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256 of each tensor's bytes, by name; files are read once, a few megabytes at a time."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        return dict(zip(checkpoint.tensors, threads.map(_stored_digest, checkpoint.tensors.values()), strict=True))


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes as they are stored."""
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def model_digest(tensors: Mapping[str, TensorInfo], digests: Mapping[str, str]) -> str:
    """The digest of a checkpoint from those of its tensors."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        info = tensors[name]
        line = [name, str(info.dtype).removeprefix("torch."), list(info.shape), digests[name]]
        whole.update(json.dumps(line).encode() + b"\n")
    return whole.hexdigest()


def _stored_digest(info: TensorInfo) -> str:
    found, left = hashlib.sha256(), info.bytes
    try:
        with info.file.open("rb") as file:
            file.seek(info.start)
            while left:
                part = file.read(min(_CHUNK, left))
                if not part:
                    raise CheckpointError(f"{info.file}: the file ends inside a tensor; fetch it again")
                found.update(part)
                left -= len(part)
    except OSError as error:
        raise CheckpointError(f"{info.file}: cannot be read: {error.strerror}") from error
    return found.hexdigest()
