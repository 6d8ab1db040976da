"""Every experiment's report from small records: whole, with gaps, beside the paper."""

import pytest

from pipelines.config import ExperimentConfig
from pipelines.report import build_report
from pipelines.report.paper import read_paper
from pipelines.report.writers.formats import to_comparison_csv, to_csv
from tests.pipelines.report import records
from tests.pipelines.report.records import content

EXPERIMENTS = records.everything()
OTHERS = [name for name in EXPERIMENTS if name != "table1"]  # table 1 has tests of its own


@pytest.mark.parametrize("name", OTHERS)
def test_every_experiment_makes_a_whole_report(name, tmp_path, rows_of, parsed):
    result = build_report(ExperimentConfig(name, report=name), "tiny", EXPERIMENTS[name], tmp_path)
    assert not result.failed
    assert {"figure.png", "figure.svg", "table.csv", "table.md", "table.tex", "findings.json"} <= set(result.files)
    header, rows = rows_of((result.path / "table.csv").read_text())
    assert rows and {row["status"] for row in rows} == {"ok"}
    assert len(header) == len(set(header))
    text = (result.path / "report.html").read_text()
    page = parsed(text)
    assert page.fetched == [] and page.open == [] and "scale: tiny" in text
    assert result.findings or name == "grid"
    assert all(finding.verdict != "undecided" for finding in result.findings)


@pytest.mark.parametrize("name", OTHERS)
def test_a_failed_cell_is_a_marked_gap_that_shifts_nothing(name, rows_of):
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
def test_the_csv_begins_with_the_papers_columns_and_rows(name, rows_of):
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
def test_at_the_papers_scale_its_numbers_stand_beside(name, rows_of):
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
