"""The page that links all reports: links, thumbnails, verdicts, gaps, times."""

import csv
import dataclasses
import json
import re

import pytest

from pipelines.config import ExperimentConfig
from pipelines.report import build_index, build_pooled_report, build_report
from pipelines.report.index import duration
from tests.pipelines.report import records


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Reports of two experiments, one with a gap, and an index that also asks for one that never ran."""
    root = tmp_path_factory.mktemp("outputs")
    cells = records.table4()
    cells[2] = records.failed(cells[2], "RuntimeError: <b>no</b> memory")
    build_report(ExperimentConfig("table4", report="table4", title="Fewer layers"), "tiny", cells, root)
    build_report(ExperimentConfig("fig3a", report="fig3a", title="The Hessian"), "tiny", records.fig3a(), root)
    return root, build_index(root, "tiny", ["table4", "fig3a", "fig1"])


def test_the_index_links_reports_that_are_there(built):
    root, page = built
    assert page == root / "reports" / "paper-tiny" / "report.html"
    text = page.read_text()
    links = set(re.findall(r'href="([^"#]+)"', text))
    assert links == {"../table4-tiny/report.html", "../fig3a-tiny/report.html"}
    assert all((page.parent / link).is_file() for link in links)
    assert "Figure 3a: The Hessian" in text and "Table 4: Fewer layers" in text


def test_a_replicate_of_another_seed_has_reports_and_an_index_of_its_own(built):
    root, first = built
    before = first.read_bytes()
    cells = [dataclasses.replace(cell, seed=1) for cell in records.table4()]
    report = build_report(ExperimentConfig("table4", report="table4", title="Fewer layers"), "tiny", cells, root)
    assert report.path.name == "table4-tiny-seed1" and report.title == "Table 4: Fewer layers (scale: tiny, seed 1)"
    page = build_index(root, "tiny", ["table4", "fig3a"], seed=1)
    assert page.parent.name == "paper-tiny-seed1" and first.read_bytes() == before
    assert set(re.findall(r'href="([^"#]+)"', page.read_text())) == {"../table4-tiny-seed1/report.html"}


def test_what_the_scale_does_not_run_stands_there_with_its_reason_and_is_no_gap(built):
    root, _ = built
    page = build_index(root, "tiny", ["fig3a", "table6"], {"table6": "run with <another> scale"})
    text = page.read_text()
    assert "Left out: run with &lt;another&gt; scale." in text and "have no report" not in text
    found = list(csv.DictReader((page.parent / "findings.csv").read_text().splitlines()))
    assert [row["detail"] for row in found if row["verdict"] == "left out"] == ["run with <another> scale"]
    build_index(root, "tiny", ["table4", "fig3a", "fig1"])


def test_what_goes_beyond_the_paper_has_a_section_of_its_own_at_the_end(built):
    root, _ = built
    text = build_index(root, "tiny", ["table4", "fig3a", "fig1"], beyond=["table4"]).read_text()
    assert text.index("Figure 3a") < text.index("Beyond the paper") < text.index("Table 4: Fewer layers")
    text = build_index(root, "tiny", ["table4", "fig3a", "fig1"]).read_text()
    assert "Beyond the paper" not in text


def test_the_index_of_pooled_replicates_links_the_pooled_reports(built):
    root, _ = built
    cells = [
        dataclasses.replace(cell, seed=seed, overrides=[f"cell={number}", f"seed={seed}"])
        for seed in (0, 1)
        for number, cell in enumerate(records.table4())
    ]
    build_pooled_report(ExperimentConfig("table4", report="table4", title="Fewer layers"), "tiny", cells, root)
    page = build_index(root, "tiny", ["table4"], seeds=2)
    assert page.parent.name == "paper-tiny-2seeds"
    assert set(re.findall(r'href="([^"#]+)"', page.read_text())) == {"../table4-tiny-2seeds/report.html"}


def test_the_index_is_self_contained_and_well_formed(built, parsed):
    text = built[1].read_text()
    page = parsed(text)
    assert page.open == [] and {name for _, name, _ in page.fetched} == {"href"}
    assert "http:" not in text and "https:" not in text and text.count("<svg") == 2
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_the_index_names_gaps_and_missing_reports(built):
    text = built[1].read_text()
    assert "1 of 3 experiments have no report" in text and "fig1." in text
    assert "1 of 4 rows have no result" in text and "Last 2 (failed)" in text
    assert "1 of 3</div>" in text  # reports without a gap


def test_findings_csv_has_every_finding_of_every_report(built):
    root, page = built
    with (page.parent / "findings.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("table4", "fig3a"):
        summary = json.loads((root / "reports" / f"{name}-tiny" / "findings.json").read_text())
        assert (summary["experiment"], summary["scale"]) == (name, "tiny")
        found = [(row["claim"], row["verdict"]) for row in rows if row["experiment"] == name]
        assert found == [(one["claim"], one["verdict"]) for one in summary["findings"]] and found
    assert [row["verdict"] for row in rows if row["experiment"] == "fig1"] == ["no report"]
    assert {row["failed_rows"] for row in rows if row["experiment"] == "table4"} == {"1"}


def test_findings_json_says_what_failed_and_how_long_stages_took(built):
    summary = json.loads((built[0] / "reports" / "table4-tiny" / "findings.json").read_text())
    assert summary["failed"] == [{"row": "Last 2", "status": "failed", "why": "RuntimeError: <b>no</b> memory"}]
    assert (summary["stages"], summary["seconds_made"]) == (1, 3.5)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", summary["made_at"])


def test_durations_are_read_at_a_glance():
    assert [duration(seconds) for seconds in (3.6, 59.7, 185, 7810)] == ["4 s", "1 min 0 s", "3 min 5 s", "2 h 10 min"]
