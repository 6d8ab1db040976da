"""The figures and the grid: numbers held against formulas of their own, and when each finding holds."""

from dataclasses import replace

import numpy as np
import pytest

from pipelines.report.experiments.grid import best_alpha, best_settings
from pipelines.report.writers.formats import to_csv
from tests.pipelines.report import records
from tests.pipelines.report.records import content, overall, verdicts


def test_fig1_compares_a_swapped_model_with_what_it_was_made_of(rows_of):
    cells = records.fig1(("chat", "math", "code"))
    made = content(cells)
    names = ("Source", "Merged", "Merged + HARC", "Merged, source router", "Source, merged router",
             "Merged, source decisions")  # fmt: skip
    by_name = dict(zip(names, cells, strict=True))
    compared = {"Merged, source router": "Merged", "Source, merged router": "Source",
                "Merged, source decisions": "Merged"}  # fmt: skip
    for name, other in compared.items():
        gain = made.table.row(name).gain["overall"]
        assert gain.value == pytest.approx(overall(by_name[name]) - overall(by_name[other]))
    assert verdicts(made) == ["holds", "holds"]
    assert len(made.points.rows) == 6 * 3
    header, rows = rows_of(to_csv(made.points))
    assert header[:4] == ["model", "domain", "accuracy", "accuracy_ci95"]
    want = np.mean([100 * np.mean(task.counts) / 16 for task in cells[1].tasks.values() if task.domain == "math"])
    (point,) = [row for row in rows if (row["model"], row["domain"]) == ("Merged", "math")]
    assert float(point["accuracy"]) == pytest.approx(want, abs=0.006)


def test_a_claim_of_order_fails_with_one_step_and_leans_on_an_unclear_one():
    cells = records.fig3a()
    assert verdicts(content(cells)) == ["holds"]
    same = records.clone(cells)
    same[1] = replace(same[1], tasks=records.record("fig3a", "wudi", 0.408).tasks)
    made = content(same)
    step = made.table.row("identity").gain["overall"]
    assert verdicts(made) == ["in direction only" if step.value > 0 else "does not hold"] and not step.clear
    same[3] = replace(same[3], tasks=cells[0].tasks)
    assert verdicts(content(same)) == ["does not hold"]


def test_fig3b_has_a_row_a_value_and_judges_both_panels():
    cells = records.fig3b()
    made = content(cells)
    assert [row.key for row in made.table.rows[:3]] == [("uncalibrated", ""), ("alpha", "0.1"), ("alpha", "0.3")]
    assert len(made.table.rows) == 12
    assert verdicts(made)[1:] == ["holds", "holds"]
    deviations = [overall(cell) - np.mean([overall(each) for each in cells[1:7]]) for cell in cells[1:7]]
    assert (max(map(abs, deviations)) <= 1) == (verdicts(made)[0] != "does not hold")
    rising = records.clone(cells)
    rising[-1] = replace(rising[-1], tasks=records.record("fig3b", "wudi", 0.7).tasks)
    rising[6] = replace(rising[6], tasks=records.record("fig3b", "wudi", 0.3).tasks)
    assert verdicts(content(rising)) == ["does not hold"] * 3


def test_fig3c_asks_whether_c4_keeps_half_of_the_gain():
    cells = records.fig3c()
    assert verdicts(content(cells)) == ["holds"] * 3
    cells[5] = replace(cells[5], tasks=records.record("fig3c", "wudi", 0.41).tasks)
    assert verdicts(content(cells))[2] == "does not hold"
    cells[1] = replace(cells[1], tasks=cells[0].tasks)  # no gain at all: nothing to keep
    assert verdicts(content(cells)) == ["does not hold", "holds", "undecided"]


def test_fig4a_points_are_the_records_values_by_domain_and_layer():
    cells = records.fig4a(layers=16)
    made = content(cells)
    assert len(made.points.rows) == 2 * 2 * 16
    for row in made.points.rows:
        cell = cells[row.key[1] == "yes"]
        assert row.values["routing_kl"] == cell.routing.kl[row.key[2]][int(row.key[3]) - 1]
    assert verdicts(made) == ["holds"] * 3
    assert "From layer 11 of 16 on" in made.findings[0].detail
    cells[1].routing.kl["math"][0] *= 9
    assert verdicts(content(cells))[1] == "does not hold"


def test_fig4b_is_the_mean_over_subsets_with_their_spread():
    cells = records.fig4b()
    made = content(cells)
    assert len(made.table.rows) == 12
    group = [overall(cell) for cell in cells if cell.merge == "wudi" and cell.calibrate == "harc"
             and cell.setting("calibration_data.fraction") == 0.4]  # fmt: skip
    row = made.table.row("WUDI-Merging", "40")
    assert row.values["overall"] == pytest.approx(np.mean(group))
    assert row.values["overall_std"] == pytest.approx(np.std(group, ddof=1))
    assert (row.values["overall_min"], row.values["overall_max"]) == pytest.approx((min(group), max(group)))
    base = next(cell for cell in cells if cell.merge == "wudi" and cell.calibrate == "none")
    assert row.gain["overall"].value == pytest.approx(np.mean(group) - overall(base))
    assert [finding.verdict for finding in made.findings][::2] == ["holds", "holds"]
    text = to_csv(made.table)
    assert {"overall_min", "overall_max", "overall_std", "seeds"} <= set(text.splitlines()[0].split(","))


def test_one_failed_subset_leaves_its_share_a_gap_and_is_named():
    cells = records.fig4b()
    at = next(i for i, cell in enumerate(cells) if cell.setting("calibration_data.seed") == 1)
    cells[at] = records.failed(cells[at])
    (gap,) = content(cells).table.failed
    assert gap.key == ("RegMean", "10") and gap.why.startswith("seed 1: RuntimeError")


def test_logit_shift_counts_shares_and_bins():
    cells = records.logit_shift()
    made = content(cells)
    for row in made.table.rows:
        cell = cells[row.key[0] == "WUDI-Merging"]
        assert row.values["below_0.1"] == pytest.approx(100 * cell.routing.shift_below_same[row.key[2]]["0.1"])
    assert len(made.points.rows) == 2 * 2 * 4 + 2 * 2 * 50
    assert verdicts(made)[0] == "does not hold"
    below = {"math": {"0.1": 0.95, "0.2": 0.999}, "code": {"0.1": 0.89, "0.2": 0.993}}
    changed = [records.with_routing(cell, shift_below_same=below) for cell in cells]
    assert verdicts(content(changed)) == ["in direction only", "holds"]


def test_mismatch_gives_the_papers_three_figures():
    cells = records.fig4a("mismatch")
    made = content(cells)
    row = made.table.row("WUDI-Merging", "no")
    shares = cells[0].routing.mismatch
    assert row.values["mismatch"] == pytest.approx(100 * np.mean([shares["math"], shares["code"]]))
    assert row.values["mismatches_per_token"] == pytest.approx(4 * row.values["mismatch"] / 100)
    assert row.values["any_mismatch"] == pytest.approx(91)
    assert verdicts(made) == ["in direction only", "in direction only"]
    beside = content([replace(cell, scale="olmoe") for cell in cells], scale="olmoe").table
    assert beside.row("WUDI-Merging", "no").paper["mismatch"] == 50.11


def test_the_grids_best_is_the_highest_and_of_equals_the_first():
    cells = records.grid()
    assert best_settings(cells) == {"ties": {"density": 0.2}, "regmean": {"damping": 0.9}}
    equal = records.clone(cells)
    equal[0] = replace(equal[0], tasks=cells[1].tasks)
    assert best_settings(equal)["ties"] == {"density": 0.1}
    equal[0] = records.failed(equal[0])
    assert best_settings(equal)["ties"] == {"density": 0.2}
    assert "ties" not in best_settings([records.failed(cell) for cell in cells[:3]])
    chosen = [row.key[:2] for row in content(cells).table.rows if row.key[2] == "best"]
    assert chosen == [
        ("TIES-Merging", "density 0.2"), ("RegMean", "damping 0.9"), ("HARC", "alpha 0.9 on TIES-Merging"),
        ("HARC", "alpha 0.9 on RegMean"),
    ]  # fmt: skip


def test_the_grids_alpha_is_one_for_all_merges_that_have_every_one():
    cells = records.grid()
    assert best_alpha(cells) == 0.9 and "alpha: 0.9" in content(cells).files["tuned.yaml"]
    lost = [records.failed(one) if one.calibrated and one.setting("calibrate.alpha") == 0.9 else one for one in cells]
    assert best_alpha(lost) is None and "calibrate" not in content(lost).files["tuned.yaml"]
    assert "chat has" not in " ".join(content(cells).notes).lower()
