"""What a cell leaves behind: one record, written and read here alone, that reports and the tracker work from.

A cell's record is `cell.json` in its Hydra directory and a line of `cells.jsonl` in the report's folder. Fields may be
added without raising VERSION: a reader keeps what it does not know. VERSION rises when a field changes its meaning.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harc.files import replace_file
from pipelines.typed import ShapeError, from_json, to_json

VERSION = 1  # records without a version are older and have the same fields
RECORD = "cell.json"


@dataclass(frozen=True)
class RowLabels:
    """The cell's row in a table of merging methods.

    method: the merge in words, with what was swapped or tuned after it.
    harc: `yes` or `no`: whether the routers were calibrated after merging.
    """

    method: str
    harc: str

    @property
    def name(self) -> str:
        """The row in words, e.g. `WUDI-Merging + HARC`."""
        return f"{self.method} + HARC" if self.harc == "yes" else self.method


@dataclass(frozen=True)
class TaskResult:
    """What a benchmark gave.

    task: name of the task that was run; domain: which domain's mean it counts in.
    accuracy: mean over problems of the share of right samples, in [0, 1].
    samples: answers sampled for each problem.
    ci95: half-width of the 95 % bootstrap interval of accuracy.
    ids: of the problems; counts: right samples of each problem, in the same order.
    """

    task: str
    domain: str
    accuracy: float
    samples: int
    ci95: float | None = None
    ids: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    other: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Histogram:
    """Shares of tokens and layers by bin. edges: one more than shares, the last closes the last bin."""

    edges: list[float]
    shares: list[float]


@dataclass(frozen=True)
class RoutingResult:
    """harc.diagnosis.RoutingReport by domain name: how far a model's routing is from each domain's source.

    layers: decoder layer of each MoE layer; a list by domain has a value for each of them, in this order.
    kl: routing KL (nats); mismatch: share of decisions; shift: mean relative logit shift; *_mean: over layers, domains.
    shift_quantiles: quantile -> shift; shift_below: limit -> share of tokens; shift_histogram: all tokens and layers.
    any_mismatch: share of tokens with at least one mismatched decision; mismatches_per_token; tokens: measured on.
    loss, source_loss: negative log-likelihood per token of the model and of the source; output_kl: KL of the model's
    next-token distribution from the source's (nats); *_by_sequence: of each sequence, on its response_tokens.
    *_same: the measure of that name, both routers given the same inputs.
    overlap: share of the source's experts that the model chooses too.
    """

    layers: list[int] = field(default_factory=list)
    kl: dict[str, list[float]] = field(default_factory=dict)
    mismatch: dict[str, list[float]] = field(default_factory=dict)
    shift: dict[str, list[float]] = field(default_factory=dict)
    shift_quantiles: dict[str, dict[str, float]] = field(default_factory=dict)
    shift_below: dict[str, dict[str, float]] = field(default_factory=dict)
    shift_histogram: dict[str, Histogram] = field(default_factory=dict)
    any_mismatch: dict[str, float] = field(default_factory=dict)
    mismatches_per_token: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    kl_mean: float | None = None
    mismatch_mean: float | None = None
    shift_mean: float | None = None
    loss: dict[str, float] = field(default_factory=dict)
    output_kl: dict[str, float] = field(default_factory=dict)
    loss_by_sequence: dict[str, list[float]] = field(default_factory=dict)
    output_kl_by_sequence: dict[str, list[float]] = field(default_factory=dict)
    kl_same: dict[str, list[float]] = field(default_factory=dict)
    mismatch_same: dict[str, list[float]] = field(default_factory=dict)
    shift_same: dict[str, list[float]] = field(default_factory=dict)
    overlap: dict[str, list[float]] = field(default_factory=dict)
    overlap_same: dict[str, list[float]] = field(default_factory=dict)
    shift_quantiles_same: dict[str, dict[str, float]] = field(default_factory=dict)
    shift_below_same: dict[str, dict[str, float]] = field(default_factory=dict)
    shift_histogram_same: dict[str, Histogram] = field(default_factory=dict)
    any_mismatch_same: dict[str, float] = field(default_factory=dict)
    mismatches_per_token_same: dict[str, float] = field(default_factory=dict)
    response_tokens: dict[str, list[int]] = field(default_factory=dict)
    source_loss: dict[str, float] = field(default_factory=dict)
    source_loss_by_sequence: dict[str, list[float]] = field(default_factory=dict)
    overlap_mean: float | None = None
    kl_same_mean: float | None = None
    mismatch_same_mean: float | None = None
    shift_same_mean: float | None = None
    overlap_same_mean: float | None = None
    loss_mean: float | None = None
    source_loss_mean: float | None = None
    output_kl_mean: float | None = None
    other: dict[str, Any] = field(default_factory=dict, repr=False)

    def by_layer(self, measure: str) -> dict[str, list[float]]:
        """One of the measures that have a value for each domain and layer, e.g. `kl`."""
        return getattr(self, measure)


@dataclass(frozen=True)
class LayerResult:
    """One layer of a calibration, see harc.calibration.report.LayerCalibration. seconds: wall time of the fit."""

    layer: int
    iterations: int = 0
    residual: float | None = None
    converged: bool = True
    residuals: list[float] = field(default_factory=list)
    seconds: float | None = None
    kl_before: float | None = None
    kl_after: float | None = None
    other: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class CalibrationResult:
    """What a calibration did, see harc.calibration.report.CalibrationReport.

    tokens: of each domain's text; seconds: in all, None where only layers were recorded; peak_memory_gb: resident.
    """

    layers: list[LayerResult] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    seconds: float | None = None
    peak_memory_gb: float | None = None
    other: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Repetition:
    """One timed run of a stage alone. peak_memory_gb: resident, beyond the loaded interpreter; process_: with it."""

    seconds: float
    peak_memory_gb: float
    process_memory_gb: float | None = None
    device_memory_gb: float | None = None
    other: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class StageRecord:
    """A stage of the cell's chain. made: by this run; seconds, peak_memory_gb: when it was made."""

    stage: str
    label: str
    key: str
    path: str
    made: bool
    seconds: float
    peak_memory_gb: float | None = None
    other: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class CellRecord:
    """A cell: what it is, known before anything runs, and what it measured.

    merge, calibrate: names of the options; swap, sft: as in the configuration; seed: the root seed.
    repair: the parts repaired; target: of the calibration; where there is one.
    status: ok, failed, excluded (no row of this sweep) or missing (never run); error: why it has no numbers.
    overrides: the job's, as on the command line; config: the whole configuration; versions: of packages and the code.
    tasks: column -> result. routing: of the cell's model; routing_before: of the merge that was calibrated.
    calibration; calibration_two: that of a smaller merge (ExperimentConfig.beside).
    cost: stage -> its timed repetitions. runtime_s, peak_memory_gb: of merging and calibration.
    """

    experiment: str
    scale: str
    row: RowLabels
    merge: str
    calibrate: str
    status: str
    error: str | None = None
    swap: str | None = None
    sft: bool = False
    seed: int | None = None
    repair: str | None = None
    target: str | None = None
    overrides: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, TaskResult] = field(default_factory=dict)
    routing: RoutingResult | None = None
    routing_before: RoutingResult | None = None
    calibration: CalibrationResult | None = None
    calibration_two: CalibrationResult | None = None
    cost: dict[str, list[Repetition]] = field(default_factory=dict)
    runtime_s: float | None = None
    peak_memory_gb: float | None = None
    stages: list[StageRecord] = field(default_factory=list)
    version: int = VERSION
    other: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def calibrated(self) -> bool:
        """Whether anything was done to the routers after merging."""
        return self.calibrate != "none"

    def setting(self, path: str) -> Any:
        """A value of the configuration, e.g. `calibrate.alpha`.

        Raises:
            ShapeError: the cell's configuration has no such value.
        """
        value: Any = self.config
        for part in path.split("."):
            if not isinstance(value, dict) or part not in value:
                raise ShapeError(f"record of {self.row.name} ({self.experiment}): its config has no {path}")
            value = value[part]
        return value


def read_record(value: Any, where: str) -> CellRecord:
    """A cell's record from JSON values.

    Args:
        value: as json.loads gives it.
        where: the file, for the message of an error.

    Raises:
        ShapeError: a record of a later version, or a field that is missing or of another shape.
    """
    if isinstance(value, dict):
        found = value.get("version", VERSION)
        if isinstance(found, int) and found > VERSION:
            raise ShapeError(f"{where}: a record of version {found}; this code reads up to {VERSION}: update it")
        value = {"seed": (value.get("config") or {}).get("seed"), **value}
        # Older records have null where there is nothing.
        value = {key: one for key, one in value.items() if one is not None}
    return from_json(CellRecord, value, where)


def write_record(directory: Path, record: CellRecord) -> None:
    """Writes the record under its final name in one step."""
    directory.mkdir(parents=True, exist_ok=True)
    replace_file(directory / RECORD, json.dumps(to_json(record)))


def read_records(sweep: Path) -> list[CellRecord]:
    """The records of a sweep, in the order of its jobs.

    Raises:
        ShapeError: a file that holds no record; it and the field are named.
    """
    files = sorted(sweep.glob(f"*/{RECORD}"), key=lambda path: int(path.parent.name))
    return [read_record(_json(file), str(file)) for file in files]


def record_lines(records: Sequence[CellRecord]) -> str:
    """Records as the text of cells.jsonl, one a line."""
    return "".join(json.dumps(to_json(record), ensure_ascii=False) + "\n" for record in records)


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ShapeError(f"{file}: no JSON ({error}); remove its folder and run the cell again") from error
