"""Every experiment's report from small records: numbers held against formulas of their own, gaps, paper, bad input."""

import csv
import io
from statistics import median

import numpy as np
import pytest

from pipelines.report import ReportError, build_report
from pipelines.report.experiments.fig4a import later
from pipelines.report.experiments.grid import best_settings
from pipelines.report.experiments.table3 import POOLED
from pipelines.report.experiments.table4 import calibrated_layers
from pipelines.report.formats import to_comparison_csv, to_csv
from pipelines.report.paper import read_paper
from pipelines.report.registry import Sweep, find_report
from tests.pipelines.report import records
from tests.pipelines.test_report import Experiment, _Page

EXPERIMENTS = records.everything()
OTHERS = [name for name in EXPERIMENTS if name != "table1"]  # table 1 has tests of its own: test_report.py


def content(cells, report=None, scale="tiny"):
    name = report or cells[0]["experiment"]
    return find_report(name)(Sweep(name, "", scale, cells))


def rows_of(text: str) -> tuple[list[str], list[dict[str, str]]]:
    reader = csv.DictReader(io.StringIO(text))
    rows = list(reader)
    return list(reader.fieldnames or []), rows


def overall(cell) -> float:
    """METHOD section 8, computed here from the counts, in per cent."""
    domains: dict[str, list[float]] = {}
    for task in cell["tasks"].values():
        domains.setdefault(task["domain"], []).append(np.sum(task["counts"]) / (len(task["counts"]) * task["samples"]))
    return 100 * float(np.mean([np.mean(values) for values in domains.values()]))


def half_of_difference(one, other) -> float:
    """Half the 95 % interval of a difference of two cells overall: strata are independent, its variance is known."""
    variance = 0.0
    domains = {task["domain"] for task in one["tasks"].values()}
    for name, task in one["tasks"].items():
        same = [each for each in one["tasks"].values() if each["domain"] == task["domain"]]
        shares = (np.array(task["counts"]) - np.array(other["tasks"][name]["counts"])) / task["samples"]
        variance += shares.var() / len(shares) / (len(same) * len(domains)) ** 2
    return 196 * variance**0.5


def verdicts(made) -> list[str]:
    return [finding.verdict for finding in made.findings]


@pytest.mark.parametrize("name", OTHERS)
def test_every_experiment_makes_a_whole_report(name, tmp_path):
    result = build_report(Experiment(name, name), "tiny", EXPERIMENTS[name], tmp_path)
    assert not result.failed
    assert {"figure.png", "figure.svg", "table.csv", "table.md", "table.tex", "findings.json"} <= set(result.files)
    header, rows = rows_of((result.path / "table.csv").read_text())
    assert rows and {row["status"] for row in rows} == {"ok"}
    assert len(header) == len(set(header))
    page = _Page()
    text = (result.path / "report.html").read_text()
    page.feed(text)
    assert page.fetched == [] and page.open == [] and "scale: tiny" in text
    assert result.findings or name == "grid"
    assert all(finding.verdict != "undecided" for finding in result.findings)


@pytest.mark.parametrize("name", OTHERS)
def test_a_failed_cell_is_a_marked_gap_that_shifts_nothing(name):
    cells = records.clone(EXPERIMENTS[name])
    whole = content(cells)
    lost = len(cells) // 2
    # Of the grid nothing says which settings were asked for; a failed one is known by its record.
    cells[lost] = records.failed(cells[lost], "RuntimeError: no memory left")
    made = content(cells)
    failed = made.table.failed
    assert 1 <= len(failed) <= 2
    keys = [row.key[:2] for row in whole.table.rows]
    if name not in ("logit_shift", "grid"):
        assert [row.key[:2] for row in made.table.rows] == keys
    gap = failed[0]
    assert gap.gap.startswith("failed: ") and "no memory left" in gap.gap and not gap.values and not gap.ci95
    for table in filter(None, (made.table, made.points)):
        _, rows = rows_of(to_csv(table))
        lost = [row for row in rows if "no memory left" in row["status"]]
        assert lost and not any(row[column.name] for row in lost for column in table.columns)


@pytest.mark.parametrize("name", [name for name in OTHERS if name != "grid"])
def test_a_cell_never_made_is_a_missing_row(name):
    cells = records.clone(EXPERIMENTS[name])[:-1]
    table = content(cells).table
    assert any(row.status == "missing" for row in table.failed)
    assert len(table.failed) <= 2


@pytest.mark.parametrize("name", ["table1", "table3", "table4", "table5", "table6", "table7"])
def test_the_csv_begins_with_the_papers_columns_and_rows(name):
    columns, published = read_paper(name)
    cells = EXPERIMENTS[name] if name != "table4" else records.table4(layers=16)
    header, rows = rows_of(to_csv(content(cells).table))
    assert header[: len(columns)] == columns
    keys = 1 if name in ("table3", "table4") else 2
    assert [[row[key] for key in columns[:keys]] for row in rows[: len(published)]] == [
        [row[key] for key in columns[:keys]] for row in published
    ]
    after = [f"{column}_ci95" for column in columns if f"{column}_ci95" in header]
    assert header[len(columns) : len(columns) + len(after)] == after
    assert "overall_ci95" in after or name == "table3"


@pytest.mark.parametrize("name", ["table3", "table4", "table5", "table7"])
def test_at_the_papers_scale_its_numbers_stand_beside(name):
    cells = {"table3": records.table3, "table4": lambda scale: records.table4(scale, layers=16),
             "table7": records.table7}.get(name)  # fmt: skip
    made = cells("olmoe") if cells else records.merging(name, ("average",), ("chat", "math", "code"), "olmoe")
    table = content(made, name, "olmoe").table
    _, rows = rows_of(to_comparison_csv(table))
    columns, published = read_paper(name)
    number = [column for column in columns if column not in ("method", "harc", "variant", "layers")]
    assert len(rows) == len(published)
    for row, paper in zip(rows, published, strict=True):
        for column in number:
            if paper[column]:
                assert float(row[f"{column}_paper"]) == pytest.approx(float(paper[column]), rel=6e-3)
            else:
                assert row[f"{column}_paper"] == ""
    assert any(row[f"{number[0]}_difference"] for row in rows)


def test_table3_is_the_median_and_range_of_the_repeats():
    table = content(records.table3()).table
    pooled, regmean, harc, *single = table.rows
    data_free = [0.5, 0.6, 0.7, 2.0, 2.2, 2.4, 1.5, 1.6, 1.9]
    assert pooled.key == (POOLED,) and pooled.values["runtime_s"] == median(data_free)
    assert (pooled.values["runtime_s_low"], pooled.values["runtime_s_high"]) == (0.5, 2.4)
    assert regmean.values["runtime_min"] == pytest.approx(6.5 / 60)
    assert (regmean.values["device_memory_gb"], regmean.values["repeats"]) == (3.5, 3)
    assert harc.values["runtime_s"] == 15.0 and "device_memory_gb" not in harc.values
    assert [row.key[0] for row in single] == ["Weight Averaging", "TIES-Merging", "DARE"]
    assert verdicts(content(records.table3())) == ["holds"] * 4


def test_table3_says_so_when_ranges_overlap_or_harc_is_quicker():
    cells = records.table3()
    cells[4]["cost"]["calibrate"] = records.cost(6.0, 7.0, 9.5, memory=3.0)
    made = content(cells)
    assert verdicts(made) == ["in direction only", "holds", "holds", "does not hold"]
    cells[4]["cost"]["calibrate"] = records.cost(0.1, 0.1, 0.1)
    assert verdicts(content(cells))[0] == "does not hold"


def test_table4_gives_shares_of_the_full_gain():
    cells = records.table4()
    table = content(cells).table
    base, full = overall(cells[0]), overall(cells[3])
    for row, cell in zip(table.rows, cells, strict=True):
        assert row.values["overall"] == pytest.approx(overall(cell))
        assert row.values["percent_of_full_gain"] == pytest.approx(100 * (overall(cell) - base) / (full - base))
    half = (table.rows[3].gain["overall"].high - table.rows[3].gain["overall"].low) / 2
    assert half == pytest.approx(half_of_difference(cells[3], cells[0]), rel=0.06)
    assert [row.values.get("runtime_min") for row in table.rows] == [None, 3 / 60, 6 / 60, 12 / 60]


def test_table4_gives_no_share_of_a_gain_that_is_not_clear():
    cells = records.table4(levels=(0.5, 0.51, 0.5, 0.5))
    cells[3]["tasks"] = records.clone(cells)[0]["tasks"]
    made = content(cells)
    assert not any("percent_of_full_gain" in row.values for row in made.table.rows)
    assert any("not defined" in note for note in made.notes)
    _, rows = rows_of(to_csv(made.table))
    assert {row["percent_of_full_gain"] for row in rows} == {""}
    assert verdicts(made)[0] == "does not hold"


def test_layers_are_a_number_a_share_or_all():
    assert [calibrated_layers(given, 16) for given in ("all", "25%", "50%", 4, "4")] == [16, 4, 8, 4, 4]
    assert [calibrated_layers("25%", total) for total in (2, 6, 48)] == [1, 2, 12]  # rounded up, as HARC does
    assert [later(16, 11), later(16, 12), later(4, 11), later(4, 12)] == [11, 12, 3, 3]


def test_table5_shows_iterations_for_three_and_for_two_models():
    cells = EXPERIMENTS["table5"]
    made = content(cells)
    for row in made.table.rows:
        if row.harc:
            counts = [[layer["iterations"] for layer in row.cell[key]["layers"]] for key in
                      ("calibration", "calibration_two")]  # fmt: skip
            assert row.values["cg_iterations"] == pytest.approx(np.mean(counts[0]))
            assert row.values["cg_iterations_two"] == pytest.approx(np.mean(counts[1]))
    assert made.findings[-1].verdict == "holds"
    more = records.clone(cells)
    more[2]["calibration_two"] = records.calibration(np.random.default_rng(0), 4, iterations=3)
    assert content(more).findings[-1].verdict == "does not hold"
    more[2]["calibration_two"] = None
    assert content(more).findings[-1].verdict == "undecided"
    header, _ = rows_of(to_csv(made.table))
    assert {"chat_avg", "cg_iterations", "cg_iterations_two"} <= set(header)


def test_table6_does_not_borrow_the_claim_of_a_best_method():
    made = content(EXPERIMENTS["table6"])
    assert [finding.claim for finding in made.findings] == ["HARC raises all five methods overall.",
                                                            "HARC lowers routing KL."]  # fmt: skip


def test_table7_judges_kl_and_the_best_variant():
    cells = records.table7()
    assert verdicts(content(cells)) == ["holds"] * 3
    cells[2]["routing"]["kl_mean"] = 0.01  # SFT on WUDI's merge now lowers it
    cells[7]["tasks"] = records.clone(cells)[4]["tasks"]  # and HARC+SFT on RegMean's gains nothing
    made = content(cells)
    assert verdicts(made) == ["does not hold", "does not hold", "does not hold"]
    row = made.table.row("RegMean", "HARC+SFT")
    assert row.gain["overall"].value == pytest.approx(0) and not row.gain["overall"].clear


def test_fig1_compares_a_swapped_model_with_what_it_was_made_of():
    cells = records.fig1(("chat", "math", "code"))
    made = content(cells)
    by_name = dict(zip(("Source", "Merged", "Merged + HARC", "Merged, source router", "Source, merged router"), cells,
                       strict=True))  # fmt: skip
    for name, other in (("Merged, source router", "Merged"), ("Source, merged router", "Source")):
        gain = made.table.row(name).gain["overall"]
        assert gain.value == pytest.approx(overall(by_name[name]) - overall(by_name[other]))
    assert verdicts(made) == ["holds", "holds"]
    assert len(made.points.rows) == 5 * 3
    header, rows = rows_of(to_csv(made.points))
    assert header[:4] == ["model", "domain", "accuracy", "accuracy_ci95"]
    want = np.mean(
        [100 * np.mean(task["counts"]) / 16 for task in cells[1]["tasks"].values() if task["domain"] == "math"]
    )
    (point,) = [row for row in rows if (row["model"], row["domain"]) == ("Merged", "math")]
    assert float(point["accuracy"]) == pytest.approx(want, abs=0.006)


def test_a_claim_of_order_fails_with_one_step_and_leans_on_an_unclear_one():
    cells = records.fig3a()
    assert verdicts(content(cells)) == ["holds"]
    same = records.clone(cells)
    same[1]["tasks"] = records.record("fig3a", "wudi", 0.408)["tasks"]
    made = content(same)
    step = made.table.row("identity").gain["overall"]
    assert verdicts(made) == ["in direction only" if step.value > 0 else "does not hold"] and not step.clear
    same[3]["tasks"] = records.clone(cells)[0]["tasks"]
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
    rising[-1]["tasks"] = records.record("fig3b", "wudi", 0.7)["tasks"]
    rising[6]["tasks"] = records.record("fig3b", "wudi", 0.3)["tasks"]
    assert verdicts(content(rising)) == ["does not hold"] * 3


def test_fig3c_asks_whether_c4_keeps_half_of_the_gain():
    cells = records.fig3c()
    assert verdicts(content(cells)) == ["holds"] * 3
    cells[5]["tasks"] = records.record("fig3c", "wudi", 0.41)["tasks"]
    assert verdicts(content(cells))[2] == "does not hold"
    cells[1]["tasks"] = records.clone(cells)[0]["tasks"]  # no gain at all: nothing to keep
    assert verdicts(content(cells)) == ["does not hold", "holds", "undecided"]


def test_fig4a_points_are_the_records_values_by_domain_and_layer():
    cells = records.fig4a(layers=16)
    made = content(cells)
    assert len(made.points.rows) == 2 * 2 * 16
    for row in made.points.rows:
        cell = cells[row.key[1] == "yes"]
        assert row.values["routing_kl"] == cell["routing"]["kl"][row.key[2]][int(row.key[3]) - 1]
    assert verdicts(made) == ["holds"] * 3
    assert "From layer 11 of 16 on" in made.findings[0].detail
    cells[1]["routing"]["kl"]["math"][0] *= 9
    assert verdicts(content(cells))[1] == "does not hold"


def test_fig4b_is_the_mean_over_subsets_with_their_spread():
    cells = records.fig4b()
    made = content(cells)
    assert len(made.table.rows) == 12
    group = [overall(cell) for cell in cells if cell["merge"] == "wudi" and cell["calibrate"] == "harc"
             and cell["config"]["calibration_data"]["fraction"] == 0.4]  # fmt: skip
    row = made.table.row("WUDI-Merging", "40")
    assert row.values["overall"] == pytest.approx(np.mean(group))
    assert row.values["overall_std"] == pytest.approx(np.std(group, ddof=1))
    assert (row.values["overall_min"], row.values["overall_max"]) == pytest.approx((min(group), max(group)))
    base = next(cell for cell in cells if cell["merge"] == "wudi" and cell["calibrate"] == "none")
    assert row.gain["overall"].value == pytest.approx(np.mean(group) - overall(base))
    assert [finding.verdict for finding in made.findings][::2] == ["holds", "holds"]
    text = to_csv(made.table)
    assert {"overall_min", "overall_max", "overall_std", "seeds"} <= set(text.splitlines()[0].split(","))


def test_one_failed_subset_leaves_its_share_a_gap_and_is_named():
    cells = records.fig4b()
    at = next(i for i, cell in enumerate(cells) if cell["config"]["calibration_data"]["seed"] == 1)
    cells[at] = records.failed(cells[at])
    (gap,) = content(cells).table.failed
    assert gap.key == ("RegMean", "10") and gap.why.startswith("seed 1: RuntimeError")


def test_logit_shift_counts_shares_and_bins():
    cells = records.logit_shift()
    made = content(cells)
    for row in made.table.rows:
        cell = cells[row.key[0] == "WUDI-Merging"]
        assert row.values["below_0.1"] == pytest.approx(100 * cell["routing"]["shift_below"][row.key[2]]["0.1"])
    assert len(made.points.rows) == 2 * 2 * 4 + 2 * 2 * 50
    assert verdicts(made)[0] == "does not hold"
    for cell in cells:
        cell["routing"]["shift_below"] = {"math": {"0.1": 0.95, "0.2": 0.999}, "code": {"0.1": 0.89, "0.2": 0.993}}
    assert verdicts(content(cells)) == ["in direction only", "holds"]


def test_mismatch_gives_the_papers_three_figures():
    cells = records.fig4a("mismatch")
    made = content(cells)
    row = made.table.row("WUDI-Merging", "no")
    shares = cells[0]["routing"]["mismatch"]
    assert row.values["mismatch"] == pytest.approx(100 * np.mean([shares["math"], shares["code"]]))
    assert row.values["mismatches_per_token"] == pytest.approx(4 * row.values["mismatch"] / 100)
    assert row.values["any_mismatch"] == pytest.approx(91)
    assert verdicts(made) == ["in direction only", "in direction only"]
    beside = content([{**cell, "scale": "olmoe"} for cell in cells], scale="olmoe").table
    assert beside.row("WUDI-Merging", "no").paper["mismatch"] == 50.11


def test_the_grids_best_is_the_highest_and_of_equals_the_first():
    cells = records.grid()
    assert best_settings(cells) == {"ties": {"density": 0.2}, "regmean": {"damping": 0.9}}
    equal = records.clone(cells)
    equal[0]["tasks"] = records.clone(cells)[1]["tasks"]
    assert best_settings(equal)["ties"] == {"density": 0.1}
    equal[0] = records.failed(equal[0])
    assert best_settings(equal)["ties"] == {"density": 0.2}
    assert "ties" not in best_settings([records.failed(cell) for cell in cells[:3]])
    chosen = [row.key[:2] for row in content(cells).table.rows if row.key[2] == "best"]
    assert chosen == [("TIES-Merging", "density 0.2"), ("RegMean", "damping 0.9")]


@pytest.mark.parametrize("change", ["seed", "commit", "torch"])
def test_cells_of_other_seeds_or_versions_are_refused_by_name(change, tmp_path):
    cells = records.table4()
    if change == "seed":
        cells[2]["config"]["seed"] = 7
    else:
        cells[2]["versions"][change] = "other"
    with pytest.raises(ReportError, match=rf"{change} \(.*never mixed"):
        build_report(Experiment("table4", "table4"), "tiny", cells, tmp_path)
    assert not (tmp_path / "reports").exists()


def test_iterations_of_the_last_layers_stand_under_their_own_layers(tmp_path):
    result = build_report(Experiment("table4", "table4"), "tiny", records.table4(), tmp_path)
    text = (result.path / "report.html").read_text()
    table = text[text.index("Calibration by layer") :].split("</table>")[0]
    lines = [line for line in table.split("<tr>") if 'scope="row"' in line]
    assert [line.count('<td class="num none"') for line in lines] == [3, 2, 0]
    assert [line.count('<td class="num') for line in lines] == [5, 5, 5]
