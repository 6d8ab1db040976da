"""What a finished directory is held against: every file with its size, time of change and hash."""

import hashlib
import json
from pathlib import Path
from typing import Any

from harc.files import sync

MANIFEST = "manifest.json"


def damage(directory: Path) -> str | None:
    """Why a finished directory can't be trusted, naming the file; None when it is whole.

    A file whose size and time of change are as recorded is taken as it was; otherwise its hash decides.
    """
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        recorded = [(name, of["bytes"], of["mtime_ns"], of["sha256"]) for name, of in manifest["files"].items()]
        manifest["metrics"]
    except OSError as error:
        return f"{directory / MANIFEST} can't be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{directory / MANIFEST} is no manifest of a finished stage"
    for name, size, changed, sha256 in recorded:
        path = directory / name
        if not path.is_file():
            return f"{path} is missing"
        stat = path.stat()
        if stat.st_size != size:
            return f"{path} has {stat.st_size} bytes, not the {size} it was written with"
        if stat.st_mtime_ns != changed and file_hash(path) != sha256:
            return f"{path} has changed since it was written"
    return None


def describe_files(directory: Path) -> dict[str, dict[str, Any]]:
    """Flushes every file of a directory to disk and describes it for the manifest."""
    files = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        sync(path)
        stat = path.stat()
        files[str(path.relative_to(directory))] = {
            "bytes": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
            "sha256": file_hash(path),
        }
    return files


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
