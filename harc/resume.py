"""Finished layers of a calibration, kept beside its output until that is complete, so that a killed one resumes.

A folder holds one safetensors file (the router as stored) and one JSON record a layer, and `calibration.json` with a
fingerprint of everything the result depends on; another fingerprint empties the folder. A resumed calibration forwards
the finished layers with their routers, and solves on from the first unfinished one.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from harc.checkpoint import Checkpoint
from harc.tokens import TokenSequence


class Progress:
    """Finished layers in a folder (None: nothing is kept)."""

    def __init__(self, folder: Path | None, fingerprint: str) -> None:
        self._folder = folder
        if folder is None:
            return
        note = folder / "calibration.json"
        if not note.is_file() or json.loads(note.read_text()).get("fingerprint") != fingerprint:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            _write(note, {"fingerprint": fingerprint})

    def load(self, layer: int) -> tuple[Tensor, dict[str, Any]] | None:
        """A finished layer's router and record; None if it is not finished."""
        if self._folder is None or not (record := self._folder / f"layer-{layer}.json").is_file():
            return None
        return load_file(self._folder / f"layer-{layer}.safetensors")["router"], json.loads(record.read_text())

    def save(self, layer: int, router: Tensor, record: dict[str, Any]) -> None:
        """Keeps a finished layer; its record appears last."""
        if self._folder is None:
            return
        save_file({"router": router.contiguous()}, self._folder / f"layer-{layer}.safetensors")
        _write(self._folder / f"layer-{layer}.json", record)

    def clear(self) -> None:
        """Removes the folder, when the calibration's output is complete."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def fingerprint(
    checkpoints: Sequence[Checkpoint], data: Sequence[Sequence[TokenSequence]], settings: dict[str, Any]
) -> str:
    """A hash of checkpoints (files, sizes and times), token ids and settings."""
    state = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for checkpoint in checkpoints:
        for file in checkpoint.files:
            status = file.stat()
            state.update(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}".encode())
    for sequences in data:
        for sequence in sequences:
            state.update(len(sequence).to_bytes(8, "little") + sequence.ids.numpy().tobytes())
    return state.hexdigest()


def _write(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    partial.replace(path)
