"""Where the checkout's own files are, what a name in a configuration means, and which names may become folders."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
DATA_FILES = (".jsonl", ".jsonl.gz", ".json", ".parquet")


def on_disk(name: str) -> Path | None:
    """The local file or folder that a name in a configuration means; None for a hub id.

    Raises:
        FileNotFoundError: something that can only be a local path, and isn't there.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.endswith(DATA_FILES) or name.count("/") > 1:
        raise FileNotFoundError(f"{name}: no such file or folder")
    return None


def plain_name(name: str, what: str) -> str:
    """The name, if it is a single plain file name.

    Raises:
        ValueError: it is empty, hidden, or has a separator in it, and would lead out of its folder.
    """
    if not name or name.startswith(".") or any(character in "/\\\0\n" for character in name):
        raise ValueError(f"{what} is {name!r}: expected a plain file name, without / or a leading dot")
    return name
