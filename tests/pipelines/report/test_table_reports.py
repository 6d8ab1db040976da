"""Tables 3 to 7: numbers held against formulas of their own, and when each finding holds."""

from dataclasses import replace
from statistics import median

import numpy as np
import pytest

from pipelines.config import ExperimentConfig
from pipelines.record import CellRecord
from pipelines.report import build_report
from pipelines.report.experiments.fig4a import later
from pipelines.report.experiments.table3 import POOLED
from pipelines.report.experiments.table4 import calibrated_layers
from pipelines.report.writers.formats import to_csv
from tests.pipelines.report import records
from tests.pipelines.report.records import content, overall, verdicts


def half_of_difference(one: CellRecord, other: CellRecord) -> float:
    """Half the 95 % interval of a difference of two cells overall: strata are independent, its variance is known."""
    variance = 0.0
    domains = {task.domain for task in one.tasks.values()}
    for name, task in one.tasks.items():
        same = [each for each in one.tasks.values() if each.domain == task.domain]
        shares = (np.array(task.counts) - np.array(other.tasks[name].counts)) / task.samples
        variance += shares.var() / len(shares) / (len(same) * len(domains)) ** 2
    return 196 * variance**0.5


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
    cells[4].cost["calibrate"] = records.cost(6.0, 7.0, 9.5, memory=3.0)
    made = content(cells)
    assert verdicts(made) == ["in direction only", "holds", "holds", "does not hold"]
    cells[4].cost["calibrate"] = records.cost(0.1, 0.1, 0.1)
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


def test_table4_gives_no_share_of_a_gain_that_is_not_clear(rows_of):
    cells = records.table4(levels=(0.5, 0.51, 0.5, 0.5))
    cells[3] = replace(cells[3], tasks=cells[0].tasks)
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


def test_table5_shows_iterations_for_three_and_for_two_models(rows_of):
    cells = records.merging("table5", records.LABELS, ("chat", "math", "code"))[:13]
    made = content(cells)
    for row in made.table.rows:
        if row.harc:
            both = (row.cell.calibration, row.cell.calibration_two)
            counts = [[layer.iterations for layer in one.layers] for one in both]
            assert row.values["cg_iterations"] == pytest.approx(np.mean(counts[0]))
            assert row.values["cg_iterations_two"] == pytest.approx(np.mean(counts[1]))
    assert any("judged without a preconditioner, by +experiment=appendix_b1" in note for note in made.notes)
    header, _ = rows_of(to_csv(made.table))
    assert {"chat_avg", "cg_iterations", "cg_iterations_two"} <= set(header)


def test_table6_does_not_borrow_the_claim_of_a_best_method():
    made = content(records.everything()["table6"])
    assert [finding.claim for finding in made.findings] == [
        "Primary endpoint: HARC raises overall accuracy in the mean of all methods.",
        "HARC raises all five methods overall.",
        "HARC lowers routing KL.",
    ]


def test_table7_judges_kl_and_the_best_variant():
    cells = records.table7()
    assert verdicts(content(cells)) == ["holds"] * 3
    cells[2] = records.with_routing(cells[2], kl_mean=0.01)  # SFT on WUDI's merge now lowers it
    cells[7] = replace(cells[7], tasks=cells[4].tasks)  # and HARC+SFT on RegMean's gains nothing
    made = content(cells)
    assert verdicts(made) == ["does not hold", "does not hold", "does not hold"]
    row = made.table.row("RegMean", "HARC+SFT")
    assert row.gain["overall"].value == pytest.approx(0) and not row.gain["overall"].clear


def test_iterations_of_the_last_layers_stand_under_their_own_layers(tmp_path):
    result = build_report(ExperimentConfig("table4", report="table4"), "tiny", records.table4(), tmp_path)
    text = (result.path / "report.html").read_text()
    table = text[text.index("Calibration by layer") :].split("</table>")[0]
    lines = [line for line in table.split("<tr>") if 'scope="row"' in line]
    assert [line.count('<td class="num none"') for line in lines] == [3, 2, 0]
    assert [line.count('<td class="num') for line in lines] == [5, 5, 5]
