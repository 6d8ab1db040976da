"""What a table's gains are worth: the primary endpoint, power, corrected p-values, harm; for accuracy and for loss.

The primary endpoint, stated before any run, is the mean gain over all methods in overall accuracy. Loss is measured on
held-out responses and resampled by sequence; it resolves differences that accuracy on a few hundred problems cannot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.report.pooling import replicates
from pipelines.report.statistics import (
    Equivalence,
    Terms,
    equivalence,
    holm,
    interval,
    mean_of,
    mean_terms,
    minimum_detectable_effect,
    replicated_means,
    sign_flip_test,
    spread,
    standard_error,
    weighted_terms,
)
from pipelines.report.tables.table import Column, Gain, Row, Table

PRIMARY = "Mean of all methods"
ACCURACY, LOSS = "overall accuracy (points)", "loss (nats a token)"
MARGINS = {ACCURACY: 1.0, LOSS: 0.001}  # the largest difference that is no matter
KEYS = [Column(name.lower(), name, kind="key") for name in ("Method", "Measure", "Verdict")]
COLUMNS = [
    Column("gain", "Gain", significant=3, interval=False),
    Column("low", "95 % from", significant=3, interval=False),
    Column("high", "95 % to", significant=3, interval=False),
    Column("detectable", "Smallest effect seen (80 % power)", "MDE", significant=2, interval=False),
    Column("p", "p", digits=4, interval=False),
    Column("p_holm", "p (Holm)", digits=4, interval=False),
    *(
        Column(f"error_{source}", f"Standard error from {source}", significant=2, interval=False)
        for source in ("samples", "problems", "seeds")
    ),
]
NOTES = (
    "Gains are positive where the row is better than its baseline. The primary endpoint is the mean gain over all "
    "methods in overall accuracy, stated before the run.",
    "Smallest effect seen: the true difference that a test at 5 % finds with 80 % power, given the spread over "
    "problems. p: paired permutation test (signs flipped by problem or sequence); p (Holm): corrected for looking at "
    "several methods.",
    f"Verdict, by the 90 % interval (two one-sided tests at 5 %): equivalent within ± {MARGINS[ACCURACY]:g} point or "
    f"± {MARGINS[LOSS]:g} nats; no harm or harm as large as that; else undecided.",
    "Standard errors: what each source of spread alone would give; their squares add up. Samples: other answers to the "
    "same problems, which are not sampled for a loss. Problems: other problems, or sequences. Seeds: another world, "
    "other trainings and other draws of calibration text, together; – where the report is of one seed, whose intervals "
    "know nothing of it. Of several seeds, intervals resample seeds and then problems, while p, which flips problems, "
    "speaks of these seeds alone.",
)


@dataclass(frozen=True)
class Effect:
    """A paired difference, positive where better: resamples, and each problem's share of the value."""

    draws: np.ndarray
    terms: Terms

    def __sub__(self, other: "Effect") -> "Effect":
        """By how much one effect is larger than another on the same problems."""
        return Effect(self.draws - other.draws, self.terms - other.terms)

    @property
    def gain(self) -> Gain:
        """The difference with its 95 % interval."""
        return Gain(self.terms.total, *interval(self.draws))

    @property
    def p(self) -> float:
        """Of the paired permutation test."""
        return sign_flip_test(self.terms.values)

    @property
    def detectable(self) -> float:
        """The smallest effect that the comparison could have seen, with 80 % power."""
        return minimum_detectable_effect(standard_error(self.draws))

    def harm(self, margin: float) -> Equivalence:
        """Whether the difference is shown to be no harm as large as the margin."""
        return equivalence(self.draws, margin)


def mean_effect(effects: Sequence[Effect]) -> Effect | None:
    """The mean over methods, all on the same problems, resampled and flipped together; None where they are not."""
    if not effects or len({len(effect.terms) for effect in effects}) > 1:
        return None
    return Effect(
        mean_of([effect.draws for effect in effects]),
        mean_terms([effect.terms for effect in effects], same_problems=True),
    )


def accuracy_effects(table: Table) -> dict[str, Effect]:
    """Row name -> its difference from its baseline in the table's main column, for rows that have a gain there."""
    found = {}
    for row in table.rows:
        other = table.baseline(row)
        if other is not None and table.main in row.gain and table.main in row.terms:
            found[row.name] = Effect(
                row.draws[table.main] - other.draws[table.main], row.terms[table.main] - other.terms[table.main]
            )
    return found


def loss_effects(table: Table) -> dict[str, Effect]:
    """Row name -> how much lower its held-out loss is than its baseline's, where both were measured on one text."""
    texts: dict[tuple[Text, ...], list[Row]] = {}
    for row in table.rows:
        measured = [cell.routing for cell in replicates(row.cell) if cell.routing and cell.routing.loss_by_sequence]
        if row.status == "ok" and measured:
            text = tuple(
                tuple((name, tuple(counts)) for name, counts in routing.response_tokens.items()) for routing in measured
            )
            texts.setdefault(text, []).append(row)
    found: dict[str, Effect] = {}
    for text, rows in texts.items():
        measured_rows = _losses(text, rows)
        for row in rows:
            if row.baseline in measured_rows:
                found[row.name] = measured_rows[row.baseline] - measured_rows[row.key]
    return {row.name: found[row.name] for row in table.rows if row.name in found}


Text = tuple[tuple[str, tuple[int, ...]], ...]  # of each domain, the response tokens of each sequence


def _losses(text: Sequence[Text], rows: Sequence[Row]) -> dict[tuple[str, ...], Effect]:
    """Row key -> the mean of its domains' losses. text: of each seed."""
    draws: list[np.ndarray] = []
    terms: dict[tuple[str, ...], list[Terms]] = {row.key: [] for row in rows}
    for place, (domain, tokens) in enumerate(text[0]):
        weights = [np.asarray(of_seed[place][1], dtype=float) for of_seed in text]
        losses = {row.key: _row_losses(row, domain) for row in rows}
        by_seed = [np.stack(columns, axis=1) for columns in zip(*losses.values(), strict=True)]
        draws.append(replicated_means(by_seed, weights=weights, stratum=("loss", domain, tokens)))
        for key, values in losses.items():
            terms[key].append(weighted_terms(values, weights))
    mean = mean_of(draws)
    return {
        row.key: Effect(mean[:, column], mean_terms(terms[row.key], same_problems=False))
        for column, row in enumerate(rows)
    }


def _row_losses(row: Row, domain: str) -> list[np.ndarray]:
    """Of each seed, the loss of each sequence."""
    return [np.asarray(cell.routing.loss_by_sequence[domain]) for cell in replicates(row.cell) if cell.routing]


def power_line(evidence: Table | None) -> str | None:
    """What mean effects the table could have seen, in one sentence; None without any."""
    seen: dict[str, list[float]] = {}
    for row in evidence.rows if evidence else []:
        if row.key[0].startswith(PRIMARY):
            seen.setdefault(row.key[1], []).append(row.values["detectable"])
    listed = [f"{_range(values)} in {measure}" for measure, values in seen.items()]
    return (
        f"Smallest mean effect over methods that this table could have seen (80 % power): {', '.join(listed)}."
        if listed
        else None
    )


def _range(values: Sequence[float]) -> str:
    low, high = (Column("", "", significant=2).text(value) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def evidence_table(table: Table) -> Table | None:
    """The primary endpoint and every row's gain, in accuracy and in loss; None where no row has a baseline."""
    rows = [*effect_rows(accuracy_effects(table), ACCURACY), *effect_rows(loss_effects(table), LOSS)]
    return effects_as_table(rows)


def effects_as_table(rows: Sequence[Row]) -> Table | None:
    """Rows of `effect_rows` as a table; None without any."""
    return Table(KEYS, COLUMNS, list(rows), main="") if rows else None


def effect_rows(effects: Mapping[str, Effect], measure: str, mean_name: str = PRIMARY) -> list[Row]:
    """The mean of several effects, which is the primary endpoint, and each of them, its p-value corrected by Holm's.

    Args:
        effects: row name -> its difference from its baseline.
        measure: ACCURACY or LOSS.
        mean_name: what the row of their mean is called.
    """
    rows = []
    mean = mean_effect(list(effects.values()))
    if mean is not None and len(effects) > 1:
        rows.append(_row(mean_name, measure, mean))
    p_values = {name: effect.p for name, effect in effects.items()}
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return rows + [_row(name, measure, effects[name], p_values[name], corrected[name]) for name in effects]


def _row(name: str, measure: str, effect: Effect, p: float | None = None, corrected: float | None = None) -> Row:
    gain, verdict = effect.gain, effect.harm(MARGINS[measure]).verdict
    row = Row((name, measure, verdict), "ok", label=name)
    row.values = {"gain": gain.value, "low": gain.low, "high": gain.high, "detectable": effect.detectable,
                  "p": effect.p if p is None else p}  # fmt: skip
    parts = spread(effect.terms)
    row.values |= {"error_problems": parts.problems}
    row.values |= {"error_samples": parts.samples} if measure == ACCURACY else {}
    row.values |= {} if parts.seeds is None else {"error_seeds": parts.seeds}
    if corrected is not None:
        row.values["p_holm"] = corrected
    return row
