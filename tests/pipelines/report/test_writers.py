"""What is written of a table: page, LaTeX, Markdown, figures, terminal; hostile text, and nothing fetched."""

import re
import shutil
import subprocess

import pytest
from PIL import Image
from rich.console import Console

from pipelines.report import print_report
from pipelines.report.paper import read_paper
from pipelines.report.writers.formats import to_comparison_csv, to_markdown
from tests.pipelines.report.records import content, table1_cells


def test_the_page_is_self_contained_and_well_formed(either, parsed):
    text = (either.path / "report.html").read_text()
    assert "http:" not in text and "https:" not in text and "@import" not in text
    page = parsed(text)
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
    assert len(re.findall(r"(?<!\\)\|", line)) == 16


def test_latex_is_balanced_and_has_a_cell_a_column(either, tmp_path):
    text = (either.path / "table.tex").read_text()
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
    for name in ("figure", "figure_routing_kl", "figure_mismatch"):
        with Image.open(whole.path / f"{name}.png") as image:
            assert image.width == 1050 and 900 < image.height < 1500  # 3.5 inches at 300 dots
            assert len(image.convert("RGB").getcolors(1 << 24)) > 20
        svg = (whole.path / f"{name}.svg").read_text()
        assert svg.count("<path") > 20 and "</svg>" in svg
    assert 'aria-label="Overall accuracy' in (whole.path / "report.html").read_text()


def test_the_scales_name_is_on_everything(whole):
    assert whole.path.name == "table1-tiny"
    for name in ("report.html", "table.md", "table.tex"):
        assert "scale: tiny" in (whole.path / name).read_text()
    titles = re.findall(r"<title>([^<]+)</title>", (whole.path / "report.html").read_text())
    assert titles[0].endswith("(scale: tiny)")


def test_at_the_papers_scale_the_paper_stands_beside(rows_of):
    table = content(table1_cells(scale="olmoe", problems=20), scale="olmoe").table
    _, rows = rows_of(to_comparison_csv(table))
    _, published = read_paper("table1")
    for row, paper in zip(rows, published, strict=True):
        assert row["overall_paper"] == paper["overall"]
        difference = float(row["overall"]) - float(paper["overall"])
        assert float(row["overall_difference"]) == pytest.approx(difference, abs=0.0101)
    assert "Measured / paper (table1) / difference" in to_markdown(table, "", [])


def test_a_tiny_report_shows_no_number_of_the_paper(whole):
    assert not (whole.path / "comparison.csv").exists() and whole.table.paper is None
    assert "Against the paper" not in (whole.path / "report.html").read_text()


def test_the_terminals_table_fits_100_columns_uncut(whole, gappy):
    for result in (whole, gappy):
        console = Console(width=100, record=True, color_system=None)
        print_report(result, console)
        text = console.export_text()
        assert all(len(line) <= 100 for line in text.splitlines() if not line.startswith("Report:"))
        assert "…" not in text and "WUDI-Merging" in text and "report.html" in text
    assert "TIES-Merging + HARC failed: RuntimeError" in text
