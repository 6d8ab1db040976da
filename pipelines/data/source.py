"""Where examples come from: the part of the configuration that every reader of data is given."""

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class DataSource:
    """A data set, and which rows are taken, in this order: shuffled, filtered, made records, skipped, limited."""

    path: str = MISSING
    """A Hugging Face dataset id, a local file or folder, or `world:<file>` for a file of the tiny world."""

    format: str = "records"
    """The adapter of pipelines/data/formats.py that turns a row into a record."""

    name: str | None = None
    """The configuration of a hub dataset, where it has several."""

    split: str = "train"
    """The split of a hub dataset or of a saved one."""

    where: dict[str, list[str]] = field(default_factory=dict)
    """Column -> accepted values; a row must match all of them."""

    skip: int = 0
    """Records left out at the beginning, 0 or more."""

    limit: int | None = None
    """Records taken after those, 1 or more (null: all). A hub dataset with a limit is streamed."""

    whole: bool = False
    """Whether a hub dataset is downloaded in spite of a limit: streaming shuffles it into another order."""

    shuffle_seed: int | None = None
    """Seed of the rows' order (null: the order of the file)."""
