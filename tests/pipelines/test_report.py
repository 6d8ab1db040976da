"""Reports: what build_report writes from cells, checked against the paper's CSV, the counts, and hostile text."""

import csv
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from eval.statistics import accuracy, paired_gain
from pipelines.report import ReportError, build_report, print_cell, print_report, report_names
from pipelines.report.formats import to_comparison_csv, to_csv, to_markdown
from pipelines.report.paper import paper_tables, read_paper
from pipelines.report.registry import Sweep, find_report
from tests.pipelines.report_cells import failed, table1_cells

HOSTILE = "RuntimeError: <script>alert('x')</script> & {50%} \\foo_bar | </td> $x^2$ ~ “quoted”\nsecond line"


@dataclass
class Experiment:
    name: str = "table1"
    report: str | None = "table1"
    title: str = "Merging methods without and with HARC"


def read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    return list(reader.fieldnames or []), rows


def content(cells, scale="tiny", report="table1"):
    """What a report says, without the files and figures that build_report makes of it."""
    return find_report(report)(Sweep(report, "", scale, cells))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A complete table 1 at scale tiny, and its cells."""
    cells = table1_cells(problems=40)
    return build_report(Experiment(), "tiny", cells, tmp_path_factory.mktemp("whole")), cells


@pytest.fixture(scope="module")
def gappy(tmp_path_factory):
    """One cell failed with hostile text, one never made."""
    cells = table1_cells(problems=20)
    cells[4] = failed(cells[4], HOSTILE)
    del cells[7]
    return build_report(Experiment(), "tiny", cells, tmp_path_factory.mktemp("gappy"))


def test_table_csv_begins_with_the_papers_columns_and_rows(whole):
    result, _ = whole
    header, rows = read(result.path / "table.csv")
    columns, published = read_paper("table1")
    assert header[: len(columns)] == columns
    accuracies = columns[2:]
    assert header[len(columns) :] == [
        *(f"{name}_ci95" for name in accuracies), "routing_kl", "mismatch", "runtime_s", "peak_memory_gb",
        "overall_gain", "overall_gain_low", "overall_gain_high", "status",
    ]  # fmt: skip
    assert [(row["method"], row["harc"]) for row in rows] == [(row["method"], row["harc"]) for row in published]
    assert {row["status"] for row in rows} == {"ok"} and not result.failed


def test_rows_keep_the_papers_order_whatever_the_cells_order(whole):
    result, cells = whole
    assert to_csv(content(cells[::-1]).table) == (result.path / "table.csv").read_text()


def test_accuracies_follow_from_the_counts_in_cells_jsonl(whole):
    result, _ = whole
    _, rows = read(result.path / "table.csv")
    cells = [json.loads(line) for line in (result.path / "cells.jsonl").read_text().splitlines()]
    by_key = {(cell["row"]["method"], cell["row"]["harc"]): cell["tasks"] for cell in cells}
    for row in rows:
        tasks = by_key[row["method"], row["harc"]]
        shares = {name: 100 * np.mean(task["counts"]) / task["samples"] for name, task in tasks.items()}
        means = [np.mean([shares["gsm8k"], shares["math500"]]),
                 np.mean([shares["humaneval_plus"], shares["mbpp_plus"]])]  # fmt: skip
        for name, value in {**shares, "math_avg": means[0], "code_avg": means[1], "overall": np.mean(means)}.items():
            assert float(row[name]) == pytest.approx(value, abs=0.0051), (row["method"], name)


def test_intervals_agree_with_the_evaluations_own_bootstrap(whole):
    result, _ = whole
    for row in result.table.rows[1:5]:
        for name, task in row.cell["tasks"].items():
            assert row.ci95[name] == pytest.approx(100 * accuracy(task["counts"], 16).half_width, rel=0.08)
        if row.harc:
            base = result.table.baseline(row).cell["tasks"]
            for name, task in row.cell["tasks"].items():
                want = paired_gain(base[name]["counts"], task["counts"], 16)
                got = row.gain[name]
                assert got.value == pytest.approx(100 * want.mean)
                assert got.low == pytest.approx(100 * want.low, abs=0.35)
                assert got.high == pytest.approx(100 * want.high, abs=0.35)


def test_an_overall_gains_interval_is_the_stratified_paired_bootstrap(whole):
    result, _ = whole
    row = result.table.row("DARE", "yes")
    base = result.table.baseline(row).cell["tasks"]
    # For means of independent strata the bootstrap's standard error is known in closed form.
    variance = 0.0
    for name, task in row.cell["tasks"].items():
        differences = (np.array(task["counts"]) - np.array(base[name]["counts"])) / 16
        variance += differences.var() / len(differences) / 16
    half = (row.gain["overall"].high - row.gain["overall"].low) / 2
    assert half == pytest.approx(196 * variance**0.5, rel=0.05)


def test_a_gain_is_marked_only_when_its_interval_excludes_zero(whole):
    result, _ = whole
    page = (result.path / "report.html").read_text()
    text = (result.path / "table.md").read_text()
    clear = [row.gain["overall"].clear for row in result.table.rows if row.harc]
    assert any(clear) and not all(clear)
    for row in result.table.rows:
        if row.harc:
            gain = row.gain["overall"]
            assert gain.clear == (gain.low > 0 or gain.high < 0)
            assert (f"{gain.text()} *" in text) == gain.clear
    marks = sum(one.clear for row in result.table.rows for one in row.gain.values())
    assert len(re.findall("[▲▼]</span>", page)) == marks


def test_rows_of_other_problems_are_never_paired():
    cells = table1_cells(problems=10)
    cells[2]["tasks"]["gsm8k"]["ids"] = [f"other/{i}" for i in range(10)]
    made = content(cells)
    gain = made.table.row("Weight Averaging", "yes").gain
    assert set(gain) == {"math500", "humaneval_plus", "mbpp_plus", "code_avg"}
    assert any("Weight Averaging + HARC has no gain" in note for note in made.notes)


def test_failed_and_missing_cells_leave_marked_gaps_and_shift_nothing(gappy):
    _, rows = read(gappy.path / "table.csv")
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


def test_an_excluded_combination_is_no_row_and_no_failure(whole):
    _, cells = whole
    known = ("experiment", "scale", "merge", "config")
    extra = {**{name: cells[0][name] for name in known}, "row": {"method": "Individual", "harc": "yes"},
             "calibrate": "harc", "status": "excluded", "error": None}  # fmt: skip
    table = content([*cells, extra]).table
    assert len(table.rows) == 13 and not table.failed


def test_a_method_that_the_scale_cannot_serve_is_a_gap_that_says_why():
    cells = table1_cells(scale="qwen3", problems=10)
    for i in (11, 12):
        cells[i] = {**failed(cells[i], "Gram matrices of 128 experts do not fit"), "status": "excluded"}
    table = content(cells, "qwen3").table
    assert table.rows[12].gap == "excluded: Gram matrices of 128 experts do not fit"
    assert "excluded: Gram matrices" in to_csv(table) and not table.failed


class _Page(HTMLParser):
    """Collects what a page would fetch, and checks that its elements close."""

    VOID = frozenset({"meta", "br", "wbr", "link", "img", "line", "rect", "path", "use", "hr", "input"})

    def __init__(self):
        super().__init__()
        self.fetched, self.open, self.scripts = [], [], 0

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        for name, value in attrs:
            if name in ("src", "srcset", "data", "action") or (name == "href" and not (value or "").startswith("#")):
                self.fetched.append((tag, name, value))
            if name == "style" and "url(" in (value or "") and "url(#" not in value:
                self.fetched.append((tag, name, value))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open and self.open[-1] == tag, (self.open[-3:], tag)
            self.open.pop()


@pytest.mark.parametrize("which", ["whole", "gappy"])
def test_the_page_is_self_contained_and_well_formed(which, request):
    result = request.getfixturevalue(which)
    result = result[0] if isinstance(result, tuple) else result
    text = (result.path / "report.html").read_text()
    assert "http:" not in text and "https:" not in text and "@import" not in text
    page = _Page()
    page.feed(text)
    assert page.fetched == [] and page.open == []
    assert page.scripts == 1
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    assert used <= set(ids)


def test_hostile_text_is_escaped_everywhere(gappy):
    page = (gappy.path / "report.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert "<script>" not in (gappy.path / "table.md").read_text()
    (line,) = [
        line for line in (gappy.path / "table.md").read_text().splitlines() if "failed:" in line and "| TIES" in line
    ]
    assert len(re.findall(r"(?<!\\)\|", line)) == 15


@pytest.mark.parametrize("which", ["whole", "gappy"])
def test_latex_is_balanced_and_has_a_cell_a_column(which, request, tmp_path):
    result = request.getfixturevalue(which)
    result = result[0] if isinstance(result, tuple) else result
    text = (result.path / "table.tex").read_text()
    body = re.sub(r"(?m)^%.*$", "", text)
    bare = re.sub(r"\\[\\{}%&$#_]", "", body)
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
    assert re.findall(r"\\begin\{(\w+)\}", body) == re.findall(r"\\end\{(\w+)\}", body)[::-1]
    columns = len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", body).group(1))
    for line in body.splitlines():
        if line.endswith("\\\\"):
            spans = [int(number) - 1 for number in re.findall(r"\\multicolumn\{(\d+)\}", line)]
            assert len(re.findall(r"(?<!\\)&", line)) + 1 + sum(spans) == columns, line
    assert "scale: tiny" in text
    if shutil.which("pdflatex"):
        packages = "\\usepackage{booktabs,graphicx}"
        document = f"\\documentclass{{article}}{packages}\\begin{{document}}{text}\\end{{document}}"
        (tmp_path / "t.tex").write_text(document)
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout[-2000:]


def test_figures_are_there_in_png_and_svg_at_column_width(whole):
    result, _ = whole
    for name in ("figure", "figure_routing_kl", "figure_mismatch"):
        with Image.open(result.path / f"{name}.png") as image:
            assert image.width == 1050 and 900 < image.height < 1500  # 3.5 inches at 300 dots
            assert len(image.convert("RGB").getcolors(1 << 24)) > 20
        svg = (result.path / f"{name}.svg").read_text()
        assert svg.count("<path") > 20 and "</svg>" in svg
    assert 'aria-label="Overall accuracy' in (result.path / "report.html").read_text()


def test_the_scales_name_is_on_everything(whole):
    result, _ = whole
    assert result.path.name == "table1-tiny"
    for name in ("report.html", "table.md", "table.tex"):
        assert "scale: tiny" in (result.path / name).read_text()
    titles = re.findall(r"<title>([^<]+)</title>", (result.path / "report.html").read_text())
    assert titles[0].endswith("(scale: tiny)")


def test_at_the_papers_scale_the_paper_stands_beside():
    table = content(table1_cells(scale="olmoe", problems=20), "olmoe").table
    rows = list(csv.DictReader(to_comparison_csv(table).splitlines()))
    _, published = read_paper("table1")
    for row, paper in zip(rows, published, strict=True):
        assert row["overall_paper"] == paper["overall"]
        difference = float(row["overall"]) - float(paper["overall"])
        assert float(row["overall_difference"]) == pytest.approx(difference, abs=0.0101)
    assert "Measured / paper (table1) / difference" in to_markdown(table, "", [])


def test_a_tiny_report_shows_no_number_of_the_paper(whole):
    result, _ = whole
    assert not (result.path / "comparison.csv").exists() and result.table.paper is None
    assert "Against the paper" not in (result.path / "report.html").read_text()


def test_the_finding_needs_every_interval_above_zero():
    def verdict(gain):
        return content(table1_cells(problems=60, gain=gain)).findings[0].verdict

    assert verdict(0.3) == "holds"
    assert verdict(-0.1) == "does not hold"


def test_a_repeated_row_is_named_by_what_differs():
    cells = table1_cells(problems=10)[:3]
    cells[2]["overrides"].append("calibrate.alpha=0.5")
    second = json.loads(json.dumps(cells[2]))
    second["overrides"][-1] = "calibrate.alpha=0.9"
    for name, total in (("table1", 14), ("cells", 4)):
        table = content([*cells, second], report=name).table
        keys = [row.key for row in table.rows]
        assert len(keys) == total
        at = keys.index(("Weight Averaging [calibrate.alpha=0.5]", "yes"))
        assert keys[at + 1] == ("Weight Averaging [calibrate.alpha=0.9]", "yes")
        assert all("overall" in row.gain for row in table.rows[at : at + 2])


def test_cells_of_another_scale_are_refused_and_the_old_report_stays(whole):
    result, cells = whole
    root = result.path.parent.parent
    before = (result.path / "table.csv").read_bytes()
    with pytest.raises(ReportError, match="never mixed"):
        build_report(Experiment(), "tiny", [*cells[:5], {**cells[5], "scale": "olmoe"}], root)
    with pytest.raises(ReportError, match="no cells"):
        build_report(Experiment(), "tiny", [], root)
    with pytest.raises(ReportError, match="table1"):
        build_report(Experiment(report="tabel1"), "tiny", cells, root)
    assert (result.path / "table.csv").read_bytes() == before
    assert sorted(path.name for path in result.path.parent.iterdir()) == [".table1-tiny.lock", "table1-tiny"]


def test_the_same_cells_make_the_same_bytes(whole, tmp_path):
    result, cells = whole
    again = build_report(Experiment(), "tiny", cells, tmp_path)
    assert again.files == sorted(path.name for path in result.path.iterdir())
    for name in again.files:
        if name != "findings.json":
            assert (again.path / name).read_bytes() == (result.path / name).read_bytes(), name
    summaries = [json.loads((path / "findings.json").read_text()) for path in (again.path, result.path)]
    times = [one.pop("made_at") for one in summaries]
    assert summaries[0] == summaries[1] and all(time.endswith("Z") for time in times)


def test_the_terminals_table_fits_100_columns_uncut(whole, gappy, capsys):
    for result in (whole[0], gappy):
        console = Console(width=100, record=True, color_system=None)
        print_report(result, console)
        text = console.export_text()
        assert all(len(line) <= 100 for line in text.splitlines() if not line.startswith("Report:"))
        assert "…" not in text and "WUDI-Merging" in text and "report.html" in text
    assert "TIES-Merging + HARC failed: RuntimeError" in text


def test_one_cell_alone_is_shown_with_its_row(tmp_path):
    console = Console(width=100, record=True, color_system=None)
    cell = table1_cells(problems=10)[7]
    print_cell(cell, tmp_path, console)
    text = console.export_text()
    assert "WUDI-Merging (scale: tiny)" in text and str(tmp_path) in text
    assert f"{100 * cell['tasks']['gsm8k']['accuracy']:.2f}" in text


def test_the_papers_tables_are_in_the_package():
    assert paper_tables() == ["table1", "table3", "table4", "table5", "table6", "table7"]
    assert {"table1", "table5", "table6", "cells", "world"} <= set(report_names())
