"""Table 1: rows, values, intervals and gains, against the paper's CSV, the counts, and formulas of their own."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import bootstrap

from pipelines.record import RowLabels
from pipelines.report.paper import read_paper
from pipelines.report.writers.formats import to_csv
from tests.pipelines.report.records import clone, content, failed, table1_cells


def test_table_csv_begins_with_the_papers_columns_and_rows(whole, rows_of):
    header, rows = rows_of((whole.path / "table.csv").read_text())
    columns, published = read_paper("table1")
    assert header[: len(columns)] == columns
    accuracies = columns[2:]
    assert header[len(columns) :] == [
        *(f"{name}_ci95" for name in accuracies), "routing_kl", "mismatch", "loss", "runtime_s", "peak_memory_gb",
        "overall_gain", "overall_gain_low", "overall_gain_high", "status",
    ]  # fmt: skip
    assert [(row["method"], row["harc"]) for row in rows] == [(row["method"], row["harc"]) for row in published]
    assert {row["status"] for row in rows} == {"ok"} and not whole.failed


def test_rows_keep_the_papers_order_whatever_the_cells_order(whole, cells):
    assert to_csv(content(cells[::-1]).table) == (whole.path / "table.csv").read_text()


def test_accuracies_follow_from_the_counts_in_cells_jsonl(whole, rows_of):
    _, rows = rows_of((whole.path / "table.csv").read_text())
    cells = [json.loads(line) for line in (whole.path / "cells.jsonl").read_text().splitlines()]
    by_key = {(cell["row"]["method"], cell["row"]["harc"]): cell["tasks"] for cell in cells}
    for row in rows:
        tasks = by_key[row["method"], row["harc"]]
        shares = {name: 100 * np.mean(task["counts"]) / task["samples"] for name, task in tasks.items()}
        means = [np.mean([shares["gsm8k"], shares["math500"]]),
                 np.mean([shares["humaneval_plus"], shares["mbpp_plus"]])]  # fmt: skip
        for name, value in {**shares, "math_avg": means[0], "code_avg": means[1], "overall": np.mean(means)}.items():
            assert float(row[name]) == pytest.approx(value, abs=0.0051), (row["method"], name)


def test_intervals_agree_with_scipys_bootstrap(whole):
    def scipys(counts):
        shares = 100 * np.array(counts) / 16
        return bootstrap((shares,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval

    for row in whole.table.rows[1:5]:
        for name, task in row.cell.tasks.items():
            low, high = scipys(task.counts)
            assert row.ci95[name] == pytest.approx((high - low) / 2, rel=0.08)
        if row.harc:
            base = whole.table.baseline(row).cell.tasks
            for name, task in row.cell.tasks.items():
                differences = np.array(task.counts) - np.array(base[name].counts)
                got = row.gain[name]
                assert got.value == pytest.approx(100 * differences.mean() / 16)
                assert (got.low, got.high) == pytest.approx(scipys(differences), abs=0.35)


def test_an_overall_gains_interval_is_the_stratified_paired_bootstrap(whole):
    row = whole.table.row("DARE", "yes")
    base = whole.table.baseline(row).cell.tasks
    # For means of independent strata the bootstrap's standard error is known in closed form.
    variance = 0.0
    for name, task in row.cell.tasks.items():
        differences = (np.array(task.counts) - np.array(base[name].counts)) / 16
        variance += differences.var() / len(differences) / 16
    half = (row.gain["overall"].high - row.gain["overall"].low) / 2
    assert half == pytest.approx(196 * variance**0.5, rel=0.05)


def test_a_gain_is_marked_only_when_its_interval_excludes_zero(whole):
    page = (whole.path / "report.html").read_text()
    text = (whole.path / "table.md").read_text()
    clear = [row.gain["overall"].clear for row in whole.table.rows if row.harc]
    assert any(clear) and not all(clear)
    for row in whole.table.rows:
        if row.harc:
            gain = row.gain["overall"]
            assert gain.clear == (gain.low > 0 or gain.high < 0)
            assert (f"{gain.text()} *" in text) == gain.clear
    marks = sum(one.clear for row in whole.table.rows for one in row.gain.values())
    assert len(re.findall("[▲▼]</span>", page)) == marks


def test_rows_of_other_problems_are_never_paired():
    cells = table1_cells(problems=10)
    cells[2].tasks["gsm8k"] = replace(cells[2].tasks["gsm8k"], ids=[f"other/{i}" for i in range(10)])
    made = content(cells)
    gain = made.table.row("Weight Averaging", "yes").gain
    assert set(gain) == {"math500", "humaneval_plus", "mbpp_plus", "code_avg"}
    assert any("Weight Averaging + HARC has no gain" in note for note in made.notes)


def test_failed_and_missing_cells_leave_marked_gaps_and_shift_nothing(gappy, rows_of):
    _, rows = rows_of((gappy.path / "table.csv").read_text())
    _, published = read_paper("table1")
    assert [(row["method"], row["harc"]) for row in rows] == [(row["method"], row["harc"]) for row in published]
    ties, wudi = rows[4], rows[7]
    assert ties["status"].startswith("failed: RuntimeError") and "\n" not in ties["status"]
    assert wudi["status"].startswith("missing")
    for row in (ties, wudi):
        assert not any(value for name, value in row.items() if name not in ("method", "harc", "status"))
    assert [row.name for row in gappy.failed] == ["TIES-Merging + HARC", "WUDI-Merging"]
    assert all(row["status"] == "ok" and row["overall"] for i, row in enumerate(rows) if i not in (4, 7))
    assert all(finding.verdict in ("undecided", "does not hold") for finding in gappy.findings)
    for name in ("table.md", "table.tex", "report.html"):
        assert "failed: RuntimeError" in (gappy.path / name).read_text()


def test_an_excluded_combination_is_no_row_and_no_failure(cells):
    extra = replace(failed(cells[0], "not a row", "excluded"), row=RowLabels("Individual", "yes"), calibrate="harc")
    table = content([*cells, extra]).table
    assert len(table.rows) == 13 and not table.failed


def test_a_method_that_the_scale_cannot_serve_is_a_gap_that_says_why():
    cells = table1_cells(scale="qwen3", problems=10)
    for i in (11, 12):
        cells[i] = failed(cells[i], "Gram matrices of 128 experts do not fit", "excluded")
    table = content(cells, scale="qwen3").table
    assert table.rows[12].gap == "excluded: Gram matrices of 128 experts do not fit"
    assert "excluded: Gram matrices" in to_csv(table) and not table.failed


def test_the_finding_needs_every_interval_above_zero():
    def verdict(gain):
        return content(table1_cells(problems=60, gain=gain)).findings[0].verdict

    assert verdict(0.3) == "holds"
    assert verdict(-0.1) == "does not hold"


def test_a_repeated_row_is_named_by_what_differs():
    cells = table1_cells(problems=10)[:3]
    (second,) = clone(cells[2:])
    cells[2].overrides.append("calibrate.alpha=0.5")
    second.overrides.append("calibrate.alpha=0.9")
    for name, total in (("table1", 14), ("cells", 4)):
        table = content([*cells, second], report=name).table
        keys = [row.key for row in table.rows]
        assert len(keys) == total
        at = keys.index(("Weight Averaging [calibrate.alpha=0.5]", "yes"))
        assert keys[at + 1] == ("Weight Averaging [calibrate.alpha=0.9]", "yes")
        assert all("overall" in row.gain for row in table.rows[at : at + 2])
