"""The groups `experiment` and `tracker`: which report is made of the cells, and where runs are followed."""

from dataclasses import dataclass, field


@dataclass
class TrackerConfig:
    """Weights & Biases."""

    kind: str = "wandb"
    """wandb or none."""

    project: str = "harc"
    """Project of the runs."""

    entity: str | None = None
    """User or team (null: your own)."""

    mode: str | None = None
    """online, offline, or null: online with WANDB_API_KEY set, else offline."""

    directory: str = "${outputs}"
    """Folder of the offline runs."""


@dataclass
class ExperimentConfig:
    """One table or figure: its cells, and the report that is made of them."""

    name: str = "cells"
    """A plain name; the report's folder begins with it."""

    report: str | None = None
    """The report of pipelines/report/experiments (null: a plain table)."""

    title: str = ""
    """Heading of the report."""

    exclude: list[dict[str, str]] = field(default_factory=list)
    """Cells of the sweep that are not rows: merge, calibrate, sft -> option."""

    cells: list[str] = field(default_factory=list)
    """Cells that no product of options gives, as lines of overrides. A line may list several values
    (`calibrate.alpha=0.1,0.9`) and stands for all their combinations."""

    cell: int | None = None
    """Which of the combinations is run."""

    beside: list[str] = field(default_factory=list)
    """Domains of a smaller merge whose calibration is reported beside (table 5)."""

    runs: list[str] = field(default_factory=list)
    """Experiments that this one runs, as one graph of stages."""

    beyond: list[str] = field(default_factory=list)
    """Those of `runs` that are not the paper's: a section of their own on the page."""

    tool: str | None = None
    """In place of a cell: what is done with models of your own, one of pipelines/tools/own_models.py."""

    dashboard: bool = False
    """In place of a cell: make the W&B workspace."""
