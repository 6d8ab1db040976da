"""The report beyond the paper: variants told apart, effects paired with the plain merge, findings by their rules."""

from dataclasses import replace

import numpy as np
import pytest

from pipelines.report import build_report
from pipelines.report.experiments.targets import BLOCK, EXACT_OWN, HARC, MERGED, RANDOM, SWAPPED, VARIANTS
from pipelines.report.registry import FAILS, HOLDS, LEANS, OPEN
from pipelines.report.tables.evidence import LOSS
from tests.pipelines.report.records import LABELS, content, losses, record, routing, verdicts

METHODS = ("average", "ties", "dare", "wudi", "fisher", "regmean")
SETTINGS = {
    "random change": {"target": "merged_inputs", "objective": "quadratic", "control": "random"},
    "domains swapped": {"target": "merged_inputs", "objective": "quadratic", "control": "swapped"},
    "HARC": {"target": "merged_inputs", "objective": "quadratic"},
    "HARC, exact KL": {"target": "merged_inputs", "objective": "kl"},
    "own targets": {"target": "source_inputs", "objective": "quadratic"},
    "own targets, exact KL": {"target": "source_inputs", "objective": "kl"},
    "router SFT": {"method": "router_sft"},
    "router and experts repaired": {"method": "repair", "parts": ["router", "experts"]},
    "block repaired": {"method": "repair", "parts": ["router", "experts", "attention"]},
}


def cells(factors: dict[str, float], gain: float = 0.2):
    """A cell a method and variant; factors: of what merging costs, in routing KL and in loss."""
    factors = {RANDOM: 1.01, SWAPPED: 1.02, **factors}
    made = []
    for number, merge in enumerate(METHODS):
        made.append(record("targets", merge, 0.4 + 0.01 * number))
        for variant, settings in SETTINGS.items():
            level = 0.4 + 0.01 * number + gain * (variant == BLOCK) - 0.05 * (variant in (RANDOM, SWAPPED))
            one = record("targets", merge, level, calibrate=settings)
            factor = factors.get(variant, 0.9)
            measured = replace(routing(np.random.default_rng(0), ("math", "code"), 4, factor))
            name = settings.get("method", "harc")
            made.append(replace(one, calibrate=name, routing=measured))
    return made


@pytest.fixture(scope="module")
def made():
    return content(cells({HARC: 0.9, EXACT_OWN: 0.6, BLOCK: 0.3}))


def test_rows_are_every_method_times_every_variant_in_order(made):
    assert [row.key for row in made.table.rows] == [(LABELS[m], variant) for m in METHODS for variant in VARIANTS]
    assert not made.table.failed


def test_differences_are_from_the_merge_as_it_was(made):
    row = made.table.row("DARE", BLOCK)
    before = made.table.row("DARE", MERGED)
    assert row.gain["overall"].value == pytest.approx(row.values["overall"] - before.values["overall"])


def test_findings_hold_where_routing_loss_and_accuracy_all_follow(made):
    assert verdicts(made) == [HOLDS] * 6


def test_findings_fail_or_lean_by_their_rules():
    worse = content(cells({HARC: 0.6, EXACT_OWN: 0.7, BLOCK: 1.1}, gain=-0.2))
    assert verdicts(worse)[:4] == [FAILS, HOLDS, FAILS, FAILS]
    little = content(cells({HARC: 0.9, EXACT_OWN: 0.85, BLOCK: 0.97}))
    assert verdicts(little)[0] == LEANS and verdicts(little)[2] == LEANS


def test_a_control_that_helps_or_does_as_well_as_harc_fails_its_finding():
    helps = content(cells({HARC: 0.9, RANDOM: 0.8}))
    assert verdicts(helps)[4:] == [FAILS, FAILS]
    assert RANDOM in helps.findings[4].detail and "than random change: +0.00" in helps.findings[5].detail


def test_a_control_that_was_not_measured_leaves_its_findings_open():
    without = [cell for cell in cells({HARC: 0.9}) if cell.config["calibrate"].get("control") != "swapped"]
    assert verdicts(content(without))[4:] == [OPEN, OPEN]


def test_the_page_does_not_call_them_the_papers_findings(made):
    assert made.findings_title.startswith("Beyond the paper")


def test_a_variant_that_was_not_measured_leaves_its_finding_open(made):
    without = [cell for cell in cells({}) if cell.config["calibrate"].get("target") != "source_inputs"]
    assert verdicts(content(without))[0] == OPEN


def test_evidence_has_the_mean_over_methods_of_each_variant(made):
    rows = {row.key[:2]: row for row in made.evidence.rows}
    row = rows[f"Mean of all methods, {EXACT_OWN}", LOSS]
    lost = [losses(("math", "code"), factor)["loss_mean"] for factor in (1.0, 0.6)]
    assert row.values["gain"] == pytest.approx(lost[0] - lost[1], abs=1e-9)
    assert row.values["low"] > 0


def test_the_folder_holds_page_figures_and_evidence(made, tmp_path, table1):
    experiment = replace(table1, name="targets", report="targets", title="Own targets and repaired blocks")
    result = build_report(experiment, "tiny", cells({EXACT_OWN: 0.6, BLOCK: 0.3}), tmp_path)
    names = {path.name for path in result.path.iterdir()}
    assert {
        "table.csv",
        "figure.png",
        "figure_routing_kl.png",
        "figure_controls.png",
        "report.html",
        "evidence.csv",
    } <= names
