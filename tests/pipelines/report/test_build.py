"""A report's folder: whole or not at all, the same for the same cells, refused for cells of different work."""

import dataclasses
import json

import pytest

from pipelines.config import ExperimentConfig
from pipelines.report import ReportError, build_report
from pipelines.report.paper import paper_tables
from tests.pipelines.report import records


def test_cells_of_another_scale_are_refused_and_the_old_report_stays(whole, cells, table1):
    root = whole.path.parent.parent
    before = (whole.path / "table.csv").read_bytes()
    with pytest.raises(ReportError, match="never mixed"):
        build_report(table1, "tiny", [*cells[:5], dataclasses.replace(cells[5], scale="olmoe")], root)
    with pytest.raises(ReportError, match="no cells"):
        build_report(table1, "tiny", [], root)
    with pytest.raises(ReportError, match="table1"):
        build_report(dataclasses.replace(table1, report="tabel1"), "tiny", cells, root)
    assert (whole.path / "table.csv").read_bytes() == before
    assert sorted(path.name for path in whole.path.parent.iterdir()) == [".claims", "table1-tiny"]


def test_the_same_cells_make_the_same_bytes(whole, cells, table1, tmp_path):
    again = build_report(table1, "tiny", cells, tmp_path)
    assert again.files == sorted(path.name for path in whole.path.iterdir())
    for name in again.files:
        if name != "findings.json":
            assert (again.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    summaries = [json.loads((path / "findings.json").read_text()) for path in (again.path, whole.path)]
    times = [one.pop("made_at") for one in summaries]
    assert summaries[0] == summaries[1] and all(time.endswith("Z") for time in times)


def test_the_papers_tables_are_in_the_package():
    assert paper_tables() == ["table1", "table3", "table4", "table5", "table6", "table7"]


@pytest.mark.parametrize("change", ["seed", "commit", "torch"])
def test_cells_of_other_seeds_or_versions_are_refused_by_name(change, tmp_path):
    cells = records.table4()
    if change == "seed":
        cells[2] = dataclasses.replace(cells[2], seed=7)
    else:
        cells[2].versions[change] = "other"
    with pytest.raises(ReportError, match=rf"{change} \(.*never mixed"):
        build_report(ExperimentConfig("table4", report="table4"), "tiny", cells, tmp_path)
    assert not (tmp_path / "reports").exists()
