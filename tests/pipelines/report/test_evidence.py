"""The evidence table against closed forms and SciPy, on records whose differences are known."""

import csv

import numpy as np
import pytest
from scipy import stats

from pipelines.report.experiments.merging import primary
from pipelines.report.registry import FAILS, HOLDS, LEANS, OPEN
from pipelines.report.statistics import weighted_terms
from pipelines.report.tables.evidence import (
    ACCURACY,
    LOSS,
    PRIMARY,
    Effect,
    accuracy_effects,
    evidence_table,
    loss_effects,
    mean_effect,
)
from pipelines.report.tables.table import Table
from tests.pipelines.report import records


@pytest.fixture(scope="module")
def made():
    return records.content(records.table1_cells(problems=60))


def counts_of(row) -> dict[str, np.ndarray]:
    return {name: np.array(task.counts) / task.samples for name, task in row.cell.tasks.items()}


def test_terms_sum_to_the_gain_and_its_standard_error_is_the_closed_form(made):
    table = made.table
    for row in table.rows:
        if not row.harc:
            continue
        effect = accuracy_effects(table)[row.name]
        assert effect.gain.value == pytest.approx(row.gain["overall"].value)
        after, before = counts_of(row), counts_of(table.baseline(row))
        # Four benchmarks of equal weight: a quarter of each one's mean difference.
        variance = sum((100 * (after[name] - before[name]) / 4).var() / 60 for name in after)
        assert effect.detectable == pytest.approx((1.95996 + 0.84162) * variance**0.5, rel=0.03)


def test_the_primary_endpoint_is_the_mean_of_the_methods_on_joint_draws(made):
    table, evidence = made.table, made.evidence
    gains = [row.gain["overall"].value for row in table.rows if row.harc]
    top = evidence.rows[0]
    assert top.key[:2] == (PRIMARY, ACCURACY)
    assert top.values["gain"] == pytest.approx(np.mean(gains)) == pytest.approx(table.pooled.value)
    assert (top.values["low"], top.values["high"]) == pytest.approx((table.pooled.low, table.pooled.high))
    shares = []
    for name in counts_of(table.rows[0]):
        each = [counts_of(row)[name] - counts_of(table.baseline(row))[name] for row in table.rows if row.harc]
        shares.append(np.mean(each, axis=0))
    expected = stats.permutation_test(
        (np.concatenate(shares), np.zeros(240)), lambda a, b, axis: (a - b).mean(axis),
        permutation_type="samples", vectorized=True, n_resamples=20_000, rng=np.random.default_rng(0),
    ).pvalue  # fmt: skip
    assert top.values["p"] == pytest.approx(expected, abs=0.01)


def test_a_rows_p_value_is_corrected_for_all_rows(made):
    rows = [row for row in made.evidence.rows if row.key[1] == ACCURACY and row.key[0] != PRIMARY]
    assert len(rows) == 6
    smallest = min(rows, key=lambda row: row.values["p"])
    assert smallest.values["p_holm"] == pytest.approx(min(1, 6 * smallest.values["p"]))
    assert all(row.values["p_holm"] >= row.values["p"] for row in rows)


def test_a_loss_gain_is_per_token_and_positive_where_the_loss_falls(made):
    table = made.table
    row = table.row("TIES-Merging", "yes")
    effect = loss_effects(table)[row.name]
    after, before = row.cell.routing, table.baseline(row).cell.routing
    assert effect.gain.value == pytest.approx(before.loss_mean - after.loss_mean)
    assert effect.gain.low > 0
    assert row.values["loss"] == pytest.approx(after.loss_mean)
    assert table.row("Individual", "no").values["loss"] == pytest.approx(before.source_loss_mean)
    line = next(one for one in made.evidence.rows if one.key[:2] == (row.name, LOSS))
    assert line.values["gain"] == effect.gain.value
    assert line.key[2] == "no harm"  # 0.006 nats better, beyond the margin of 0.001


def test_losses_on_other_text_are_not_paired():
    cells = records.table1_cells(problems=10)
    cells[2] = records.with_routing(cells[2], response_tokens={"math": [3] * 60, "code": [4] * 60})
    table = records.content(cells).table
    assert "Weight Averaging + HARC" not in loss_effects(table)
    assert len(loss_effects(table)) == 5


def test_the_primary_verdict_follows_the_mean_gains_interval():
    def verdict(gain: float, cells=None) -> str:
        return primary(records.content(cells or records.table1_cells(gain=gain)).table).verdict

    assert verdict(0.1) == HOLDS
    assert verdict(-0.1) == FAILS
    assert verdict(0.0) in (LEANS, FAILS)
    cells = records.table1_cells(gain=0.1)
    cells[2] = records.failed(cells[2])
    assert verdict(0.1, cells) == OPEN


def test_methods_on_other_problems_have_no_common_mean(made):
    effects = list(accuracy_effects(made.table).values())
    short = Effect(effects[0].draws, weighted_terms([np.zeros(10)]))
    assert mean_effect([*effects, short]) is None
    assert mean_effect([]) is None


def test_a_table_without_baselines_has_no_evidence(made):
    rows = [row for row in made.table.rows if not row.harc]
    assert evidence_table(Table(made.table.keys, made.table.columns, rows)) is None


def test_the_report_folder_shows_the_evidence(whole):
    with (whole.path / "evidence.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert (rows[0]["method"], rows[0]["measure"]) == (PRIMARY, ACCURACY)
    assert float(rows[0]["gain"]) == pytest.approx(whole.table.pooled.value, rel=5e-3)
    assert len(rows) == 2 * 7
    page = (whole.path / "report.html").read_text()
    assert "What the gains are worth" in page and "TIES-Merging + HARC" in page
    assert PRIMARY in (whole.path / "evidence.md").read_text()
    assert whole.findings[0].claim.startswith("Primary endpoint")
