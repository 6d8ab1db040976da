"""Files that are whole or absent, also after a power cut: flushed to disk first, then given their name in one step."""

import os
import shutil
from pathlib import Path


def sync(path: Path) -> None:
    """Flushes a file, or a directory's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, content: str | bytes) -> None:
    """Writes a file and flushes it to disk."""
    with path.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: str | bytes) -> None:
    """Writes a file under its final name in one step, in place of what was there."""
    partial = path.with_name(f".{path.name}.partial")
    write_synced(partial, content)
    partial.replace(path)


def publish(partial: Path, final: Path) -> None:
    """Gives a finished directory its name. What had the name before is removed only once the new one stands.

    The two are in the same file system; flushing the files is the caller's. A call that was cut short between its two
    renames is undone by the next one.
    """
    old = final.with_name(f".{final.name}.old")
    if old.exists() and not final.exists():
        old.rename(final)
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    try:
        partial.rename(final)
    except BaseException:
        if old.exists():
            old.rename(final)
        raise
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)
