"""Replicates as one report: values are means of the seeds, intervals those of seeds and problems, gaps are named."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from pipelines.report import ReportError, build_pooled_report
from pipelines.report.pooling import pool, replicates, seeds_of
from pipelines.report.tables.evidence import ACCURACY, LOSS, PRIMARY, accuracy_effects, loss_effects, power_line
from tests.pipelines.report import records

SHIFTS = (0.0, 0.04, 0.08)  # of what HARC gains, under each seed


def replicated(gains=SHIFTS, problems: int = 60):
    """Table 1 under several seeds, each with problems and answers of its own."""
    cells = []
    for seed, gain in enumerate(gains):
        for cell in records.table1_cells(problems=problems, gain=gain, seed=seed):
            words = [*cell.overrides, f"seed={seed}"]
            cells.append(dataclasses.replace(cell, seed=seed, overrides=words, config={**cell.config, "seed": seed}))
    return cells


@pytest.fixture(scope="module")
def cells():
    return replicated()


@pytest.fixture(scope="module")
def made(cells):
    return records.content(pool(cells))


def gain_of(rows, name: str) -> float:
    return next(row for row in rows if row.name == name).gain["overall"].value


def test_cells_are_pooled_by_their_overrides_without_the_seed(cells):
    pooled = pool(cells)
    assert len(pooled) == 13 and seeds_of(pooled) == [0, 1, 2]
    assert [[one.seed for one in replicates(cell)] for cell in pooled] == [[0, 1, 2]] * 13
    assert all("seed" not in " ".join(cell.overrides) for cell in pooled)
    assert pooled[0].config["seed"] == [0, 1, 2] and pooled[0].config["domains"] == ["math", "code"]


def test_values_gains_and_measures_are_the_means_of_the_seeds(cells, made):
    alone = [records.content([cell for cell in cells if cell.seed == seed]).table for seed in (0, 1, 2)]
    for row in made.table.rows:
        ones = [table.row(*row.key) for table in alone]
        assert row.values.keys() == ones[0].values.keys()
        for name, value in row.values.items():
            assert value == pytest.approx(np.mean([one.values[name] for one in ones])), name
        if row.harc:
            assert row.gain["overall"].value == pytest.approx(np.mean([one.gain["overall"].value for one in ones]))


def test_an_interval_has_the_analytic_variance_between_seeds_and_within(cells, made):
    row = made.table.row("TIES-Merging", "yes")
    effect = accuracy_effects(made.table)[row.name]
    of_seed, within = [], []
    for after, before in zip(replicates(row.cell), replicates(made.table.baseline(row).cell), strict=True):
        each = [
            100 / 4 * (np.array(after.tasks[name].counts) - np.array(before.tasks[name].counts)) / 16
            for name in after.tasks
        ]
        of_seed.append(sum(one.mean() for one in each))
        within.append(sum(one.var() / len(one) for one in each))
    expected = (
        np.var(of_seed) / 3 + np.mean(within) / 3
    )  # of means of three resampled seeds, each of resampled problems
    assert np.var(effect.draws) == pytest.approx(expected, rel=0.05)
    assert row.gain["overall"].low == pytest.approx(np.percentile(effect.draws, 2.5))


def test_seeds_that_disagree_widen_the_interval_and_are_named_as_its_source():
    agreeing, apart = (
        next(
            one for one in records.content(pool(replicated(gains))).evidence.rows if one.key[:2] == (PRIMARY, ACCURACY)
        )
        for gains in ((0.04, 0.04, 0.04), (-0.1, 0.04, 0.18))
    )
    width = [row.values["high"] - row.values["low"] for row in (agreeing, apart)]
    assert width[1] > 3 * width[0]
    assert apart.values["error_seeds"] > 5 * apart.values["error_problems"]
    assert apart.values["detectable"] > 3 * agreeing.values["detectable"]


def test_losses_are_paired_within_each_seed(cells, made):
    row = made.table.row("WUDI-Merging", "yes")
    effect = loss_effects(made.table)[row.name]
    means = [
        before.routing.loss_mean - after.routing.loss_mean
        for before, after in zip(replicates(made.table.baseline(row).cell), replicates(row.cell), strict=True)
    ]
    assert effect.gain.value == pytest.approx(np.mean(means))
    line = next(one for one in made.evidence.rows if one.key[:2] == (row.name, LOSS))
    assert "error_samples" not in line.values and line.values["error_seeds"] == pytest.approx(0)  # the same in each


def test_a_seed_that_failed_leaves_a_gap_that_names_it(cells):
    broken = list(cells)
    broken[15] = records.failed(broken[15], "RuntimeError: no memory")
    table = records.content(pool(broken)).table
    (row,) = table.failed
    assert row.gap == "failed: seed 1: failed, RuntimeError: no memory"
    without = [cell for cell in cells if not (cell.seed == 2 and cell.merge == "dare" and cell.calibrated)]
    (row,) = records.content(pool(without)).table.failed
    assert row.name == "DARE + HARC" and "seed 2: no cell of this sweep made it" in row.why


def test_notes_say_how_many_seeds_and_problems_and_the_power(cells, table1, tmp_path):
    result = build_pooled_report(table1, "tiny", cells, tmp_path)
    assert result.path.name == "table1-tiny-3seeds" and result.title.endswith("(scale: tiny, seeds 0, 1, 2)")
    text = (result.path / "table.md").read_text()
    assert (
        "Pooled over 3 seeds (0, 1, 2)" in text and "gsm8k 60" in text and "bootstrap interval over seeds and" in text
    )
    assert "Smallest mean effect over methods that this table could have seen (80 % power): " in text
    lines = [json.loads(line) for line in (result.path / "cells.jsonl").read_text().splitlines()]
    assert len(lines) == 39 and {line["seed"] for line in lines} == {0, 1, 2}
    assert "replicates" not in lines[0]


def test_replicates_of_different_code_are_not_pooled(cells, table1, tmp_path):
    other = [
        dataclasses.replace(cell, versions={**cell.versions, "torch": "9"}) if cell.seed else cell for cell in cells
    ]
    with pytest.raises(ReportError, match="version of torch"):
        build_pooled_report(table1, "tiny", other, tmp_path)


@pytest.mark.parametrize("cells_of", [records.table3, records.table4, records.fig3a])
def test_reports_of_other_kinds_pool_as_well(cells_of):
    one = cells_of()
    cells = [dataclasses.replace(cell, seed=seed) for seed in (0, 1) for cell in one]
    # Overrides of hand-made cells do not tell them apart: their number does.
    cells = [dataclasses.replace(cell, overrides=[f"cell={i % len(one)}"]) for i, cell in enumerate(cells)]
    alone, pooled = records.content(one).table, records.content(pool(cells)).table
    assert not pooled.failed and [row.key for row in pooled.rows] == [row.key for row in alone.rows]
    for before, after in zip(alone.rows, pooled.rows, strict=True):
        measured = {
            name: value for name, value in before.values.items() if name != "repeats"
        }  # there are twice as many
        assert {name: after.values[name] for name in measured} == pytest.approx(measured, rel=1e-6)


def test_the_power_line_is_of_the_primary_endpoint(made):
    detectable = next(row for row in made.evidence.rows if row.key[:2] == (PRIMARY, ACCURACY)).values["detectable"]
    assert f"{detectable:.2g} in {ACCURACY}" in power_line(made.evidence)
    mean = np.mean([effect.draws for effect in accuracy_effects(made.table).values()], axis=0)
    assert detectable == pytest.approx((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * np.std(mean, ddof=1))
    assert power_line(None) is None
