"""Finished layers of a calibration, kept beside its output until that is complete, so that a killed one goes on.

A folder holds `calibration.json`, with a fingerprint of everything the result depends on (another one empties the
folder), and one safetensors file (the router as stored) and one JSON record a finished layer; the record has the file's
checksum and is written last, so that a layer is there as a whole or not at all.

The hidden states behind the last finished layer are kept too (`states-LAYER`), where that is cheap: writing them is
worth it when forwarding what was finished since they were last kept took `_WORTH` times as long as writing will. On
a CPU that is after every layer; on a fast accelerator with millions of tokens, whose forward of a layer takes less than
writing tens of gigabytes, perhaps never. A resumed calibration reads them and goes on behind that layer, and forwards
the finished layers above it (all of them, where no states are kept), with their routers, without solving them.

A file that is damaged is named in the log; layers from the first one that is not whole are calibrated again.
"""

import hashlib
import json
import logging
import shutil
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from harc.checkpoint import Checkpoint
from harc.files import replace_file
from harc.tokens import TokenSequence

log = logging.getLogger(__name__)

_WORTH = 10.0
_BYTES_A_SECOND = 5e8  # of writing, until it has been measured
_BLOCK_BYTES = 1 << 26


class Progress:
    """Finished layers in a folder (None: nothing is kept)."""

    def __init__(self, folder: Path | None, fingerprint: str) -> None:
        self._folder = folder
        self._rate, self._since = _BYTES_A_SECOND, 0.0
        if folder is not None and _read(folder / "calibration.json").get("fingerprint") != fingerprint:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            _write(folder / "calibration.json", {"fingerprint": fingerprint})

    def finished(self, layers: Sequence[int]) -> dict[int, tuple[Tensor, dict[str, Any]]]:
        """Routers and records of finished layers, up to the first of `layers` that is not finished or not whole."""
        found: dict[int, tuple[Tensor, dict[str, Any]]] = {}
        for layer in layers:
            if (kept := self.load(layer)) is None:
                break
            found[layer] = kept[0]["router"], kept[1]
        return found

    def load(self, layer: int) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """A finished layer's tensors and record; None if it is not there or not whole."""
        if self._folder is None or not (self._folder / f"layer-{layer}.json").is_file():
            return None
        note = _read(self._folder / f"layer-{layer}.json")
        file = self._folder / f"layer-{layer}.safetensors"
        content = file.read_bytes() if file.is_file() else b""
        if not note or hashlib.sha256(content).hexdigest() != note["sha256"]:
            log.warning("%s: damaged; layer %d is calibrated again", file, layer)
            return None
        return load(content), note["record"]

    def save(self, layer: int, tensors: Mapping[str, Tensor], record: dict[str, Any]) -> None:
        """Keeps a finished layer; its record appears last."""
        if self._folder is None:
            return
        content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        replace_file(self._folder / f"layer-{layer}.safetensors", content)
        note = {"sha256": hashlib.sha256(content).hexdigest(), "record": record}
        _write(self._folder / f"layer-{layer}.json", note)

    def save_states(self, layer: int, states: Sequence[Tensor], seconds: float) -> None:
        """Keeps the hidden states behind a layer, if that is worth it. seconds: what forwarding the layer took."""
        self._since += seconds
        size = sum(values.numel() * values.element_size() for values in states)
        if self._folder is None or not size or self._since < _WORTH * size / self._rate:
            return
        if size > 0.9 * shutil.disk_usage(self._folder).free:
            log.warning("%s: no room for %.1f GB of hidden states; none are kept", self._folder, size / 1e9)
            return
        began = time.perf_counter()
        partial = self._folder / "states.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        sums = [_write_tensor(partial / f"{index}.bin", values) for index, values in enumerate(states)]
        _write(partial / "states.json", {"checksums": sums})
        old = list(self._folder.glob("states-*"))
        partial.rename(self._folder / f"states-{layer}")
        for folder in old:
            shutil.rmtree(folder)
        self._rate, self._since = size / max(time.perf_counter() - began, 1e-9), 0.0

    def load_states(self, states: Sequence[Tensor], last: int) -> int:
        """Fills in the hidden states that are kept; the layer they lie behind (`last` at most), −1 if there are none.

        What `states` hold is lost either way.
        """
        if self._folder is None:
            return -1
        kept = {int(folder.name.removeprefix("states-")): folder for folder in self._folder.glob("states-*")}
        for layer, folder in sorted(kept.items(), reverse=True):
            if layer > last:
                continue
            sums = _read(folder / "states.json").get("checksums")
            files = [folder / f"{index}.bin" for index in range(len(states))]
            if sums == [_read_tensor(file, values) for file, values in zip(files, states, strict=True)]:
                return layer
            log.warning("%s: damaged hidden states; finished layers are forwarded again", folder)
        return -1

    def clear(self) -> None:
        """Removes the folder, when the calibration's output is complete."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def fingerprint(
    checkpoints: Sequence[Checkpoint], data: Sequence[Sequence[TokenSequence]], settings: dict[str, Any]
) -> str:
    """A hash of checkpoints (files, sizes and times), token ids and settings."""
    state = hashlib.sha256(json.dumps({**settings, "layout": 2}, sort_keys=True, default=str).encode())
    for checkpoint in checkpoints:
        for file in checkpoint.files:
            status = file.stat()
            state.update(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}".encode())
    for sequences in data:
        for sequence in sequences:
            state.update(len(sequence).to_bytes(8, "little") + sequence.ids.numpy().tobytes())
    return state.hexdigest()


def _rows(values: Tensor) -> int:
    return max(1, _BLOCK_BYTES // max(1, values.shape[1] * values.element_size()))


def _write_tensor(file: Path, values: Tensor) -> int:
    """Writes a tensor's bytes; their checksum."""
    checksum = 0
    with file.open("wb") as stream:
        for block in values.split(_rows(values)):
            content = block.contiguous().view(torch.uint8).numpy()
            checksum = zlib.crc32(content, checksum)
            stream.write(content)
    return checksum


def _read_tensor(file: Path, values: Tensor) -> int | None:
    """Fills a tensor from a file; the bytes' checksum, None if the file is not there or of another size."""
    if not file.is_file() or file.stat().st_size != values.numel() * values.element_size():
        return None
    checksum = 0
    with file.open("rb") as stream:
        for block in values.split(_rows(values)):
            content = block.view(torch.uint8).numpy()
            stream.readinto(content)
            checksum = zlib.crc32(content, checksum)
    return checksum


def _read(path: Path) -> dict[str, Any]:
    """A JSON file's content; empty if it is not there or damaged, which is noted in the log."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        log.warning("%s: damaged; it is left out of account", path)
        return {}
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    replace_file(path, json.dumps(content))
