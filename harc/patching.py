"""A calibrated model as what it differs by from the merge: a small safetensors file that fits that merge alone.

A patch holds the changed tensors whole, by published name, and in its header the digest (harc.checkpoint.digest) of the
model that it fits and of the model that it gives. It is applied only where the first is the model's, and only if the
second comes out.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from harc.checkpoint import Checkpoint, CheckpointError, open_checkpoint, replace_tensors
from harc.checkpoint.digest import model_digest, tensor_digest, tensor_digests
from harc.checkpoint.read import INDEX_NAME, TensorInfo, read_header
from harc.checkpoint.write import is_finite, reserve_file, write_tensor
from harc.files import publish, sync
from harc.models.routers import NoRouterError
from harc.models.streaming import LayerStream

log = logging.getLogger(__name__)

FORMAT = "harc-patch-1"
SUFFIX = ".patch.safetensors"


class SameModelError(CheckpointError):
    """Nothing to patch: the two models are the same to the bit."""


@dataclass(frozen=True)
class Patch:
    """A patch file.

    path: the file; tensors: what it replaces; bytes: their size; model_bytes: of all the model's tensors.
    fits, gives: digests of the model that it is applied to, and of the one that comes out.
    others: how many of the tensors belong to no router (a repair's do).
    """

    path: Path
    tensors: dict[str, TensorInfo]
    bytes: int
    model_bytes: int
    fits: str
    gives: str
    others: int


class _Replacements(Mapping[str, Tensor]):
    """A patch's tensors, each read when it is asked for."""

    def __init__(self, source: str, tensors: dict[str, TensorInfo]) -> None:
        self._held = Checkpoint(source, Path(source).parent, {}, tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self._held.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held.tensors)


def save_patch(calibrated: str | Path | Checkpoint, merged: str | Path | Checkpoint, out: str | Path) -> Patch:
    """Writes what a calibrated (or repaired) model differs by from its merge to the file `out`, atomically.

    Args:
        calibrated: the model that the patch shall give.
        merged: the model that the patch shall fit.
        out: the patch, a file that is not there yet.

    Raises:
        CheckpointError: models of other tensors, shapes or dtypes; `out` there already.
        SameModelError: the same model twice.
    """
    after, before = open_checkpoint(calibrated), open_checkpoint(merged)
    out = Path(out).expanduser()
    if out.exists():
        raise CheckpointError(f"{out}: there already; choose another name or remove it")
    _check_alike(after, before)
    new, old = tensor_digests(after), tensor_digests(before)
    changed = {name: after.tensors[name] for name in after if new[name] != old[name]}
    if not changed:
        raise SameModelError(f"{after.source}: the same as {before.source} to the bit; there is nothing to patch")
    others = len(set(changed) - _router_keys(before))
    metadata = {
        "harc": FORMAT,
        "fits": model_digest(before.tensors, old),
        "gives": model_digest(after.tensors, new),
        "model": before.folder.name,
        "model_bytes": str(before.bytes),
        "others": str(others),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    os.close(handle)
    partial = Path(name)
    try:
        places = reserve_file(partial, {key: (info.dtype, info.shape) for key, info in changed.items()}, metadata)
        for key, place in places.items():
            write_tensor(place, key, after.read(key))
        sync(partial)
        partial.chmod(0o644)
        partial.rename(out)
        sync(out.absolute().parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    patch = read_patch(out)
    beyond = (
        f", {others} of them no routers: a repair's patch is nearly the model itself" if others else ", all routers"
    )
    log.info(
        "%s: %d tensors (%.2f MB of a model of %.2f MB)%s",
        out,
        len(changed),
        patch.bytes / 1e6,
        patch.model_bytes / 1e6,
        beyond,
    )
    return patch


def apply_patch(patch: str | Path, model: str | Path | Checkpoint, out: str | Path | None = None) -> Path:
    """Makes the calibrated model from the merge that a patch fits; returns its folder.

    In place, a whole new folder is made beside the old one (unchanged weight files are linked) and takes its name: a
    call that is cut short leaves the model as it was, or as it shall be, and files that other models are linked to stay
    theirs.

    Args:
        patch: a file that `save_patch` wrote.
        model: the merge that it fits.
        out: a new checkpoint; None changes `model` itself.

    Raises:
        CheckpointError: no patch, or a damaged one; another model than it fits; `out` there already. The model is
            then as it was.
    """
    found, checkpoint = read_patch(Path(patch).expanduser()), open_checkpoint(model)
    if out is None:
        _check_own_folder(checkpoint)
    _check_fits(found, checkpoint)
    tensors = _Replacements(str(found.path), found.tensors)
    if out is not None:
        return replace_tensors(checkpoint, Path(out).expanduser(), tensors)
    folder = checkpoint.folder.absolute()
    partial = folder.with_name(f".{folder.name}.patched")
    shutil.rmtree(partial, ignore_errors=True)
    replace_tensors(checkpoint, partial, tensors)
    try:
        _take_others(checkpoint, folder, partial)
        publish(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return checkpoint.folder


def read_patch(path: Path) -> Patch:
    """Opens a patch; its tensors stay on disk.

    Raises:
        CheckpointError: a file that is missing, damaged, or no patch.
    """
    tensors = read_header(path)
    with safe_open(path, framework="pt") as file:
        said = file.metadata() or {}
    if said.get("harc") != FORMAT:
        raise CheckpointError(
            f"{path}: no patch of this version: header `harc` is {said.get('harc')!r}, not {FORMAT!r}"
        )
    for key in ("fits", "gives"):
        if len(said.get(key, "")) != 64 or set(said[key]) - set("0123456789abcdef"):
            raise CheckpointError(f"{path}: header `{key}` is {said.get(key)!r}, expected a SHA-256; fetch it again")
    counts = {key: said.get(key, "") for key in ("model_bytes", "others")}
    if not all(count.isdecimal() and len(count) < 20 for count in counts.values()):
        raise CheckpointError(f"{path}: its header says {counts}, expected numbers; fetch it again")
    size = sum(info.bytes for info in tensors.values())
    return Patch(path, tensors, size, int(counts["model_bytes"]), said["fits"], said["gives"], int(counts["others"]))


def _check_alike(after: Checkpoint, before: Checkpoint) -> None:
    for one, other in ((after, before), (before, after)):
        missing = [name for name in one if name not in other]
        if missing:
            raise CheckpointError(
                f"{other.source}: no tensor {missing[0]} ({len(missing)} in all), which {one.source} has; a patch "
                "replaces tensors and adds none"
            )
    for name, info in after.tensors.items():
        expected = before.tensors[name]
        if (info.shape, info.dtype) != (expected.shape, expected.dtype):
            raise CheckpointError(
                f"{info.file}: {name} is {info.dtype} of shape {info.shape}, {expected.dtype} of shape "
                f"{expected.shape} in {before.source}; a patch keeps both"
            )


def _check_fits(patch: Patch, model: Checkpoint) -> None:
    """Holds a patch against a model: first what the headers say, then every byte."""
    for name, info in patch.tensors.items():
        if name not in model:
            raise CheckpointError(
                f"{patch.path}: replaces {name!r}, which {model.source} has not; it is another model's"
            )
        expected = model.tensors[name]
        if (info.shape, info.dtype) != (expected.shape, expected.dtype):
            raise CheckpointError(
                f"{patch.path}: {name} is {info.dtype} of shape {info.shape}, in {model.source} {expected.dtype} of "
                f"shape {expected.shape}; it is another model's"
            )
    digests = tensor_digests(model)
    digest = model_digest(model.tensors, digests)
    if digest == patch.gives:
        raise CheckpointError(f"{model.source}: has this patch already; there is nothing to do")
    if digest != patch.fits:
        raise CheckpointError(
            f"{patch.path}: fits a model with digest {patch.fits[:16]}…, {model.source} has {digest[:16]}…: it is "
            "another model, or was changed since; take the merge that the patch was made from"
        )
    for name, tensor in _Replacements(str(patch.path), patch.tensors).items():
        if tensor.dtype.is_floating_point and not is_finite(tensor):
            raise CheckpointError(f"{patch.path}: NaN or Inf in {name}")
        digests[name] = tensor_digest(tensor)
    if model_digest(model.tensors, digests) != patch.gives:
        raise CheckpointError(f"{patch.path}: its tensors are not those that its header speaks of; fetch it again")


def _check_own_folder(model: Checkpoint) -> None:
    """A hub cache's snapshot, or a link to a folder, is not for us to replace."""
    folder = Path(model.source).expanduser()
    if folder.is_symlink() or not folder.is_dir() or model.folder.parent.name == "snapshots":
        raise CheckpointError(f"{model.source}: no folder of its own to change in place; say where with out=")


def _take_others(model: Checkpoint, folder: Path, partial: Path) -> None:
    """Links (or copies, across file systems) whatever else lies in the model's folder."""
    weights = {file.name for file in model.files} | {INDEX_NAME}
    for each in sorted(folder.iterdir()):
        target = partial / each.name
        if each.name in weights or target.exists():
            continue
        if each.is_dir() and not each.is_symlink():
            shutil.copytree(each, target, symlinks=True)
        else:
            shutil.copy2(each, target, follow_symlinks=False)


def _router_keys(model: Checkpoint) -> set[str]:
    """The published names of a model's routers; none where they cannot be found."""
    try:
        return {key for router in LayerStream(model).routers.values() for key in router.keys}
    except (NoRouterError, CheckpointError):
        return set()
