"""A table as CSV, Markdown and LaTeX.

The CSV begins with exactly the paper's columns; after them the intervals' half-widths, the measures, the gain over the
row's baseline in the main column, and a status that is `ok` or says why a row is a gap.
"""

import csv
import io

from pipelines.report.tables.table import Column, Row, Table


def to_csv(table: Table) -> str:
    """The whole table; a gap's numbers are empty and its status says why."""
    compares = any(row.baseline for row in table.rows)
    main = table.main if compares and any(column.name == table.main for column in table.columns) else None
    judged = [column for column in table.accuracies if column.interval]
    header = [column.name for column in (*table.keys, *table.accuracies)]
    header += [f"{column.name}_ci95" for column in judged]
    header += [column.name for column in table.measures]
    header += [f"{main}_gain", f"{main}_gain_low", f"{main}_gain_high"] if main else []
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*header, "status"])
    for row in table.rows:
        line = [*row.key, *(column.text(row.values.get(column.name), "") for column in table.accuracies)]
        line += [column.text(row.ci95.get(column.name), "") for column in judged]
        line += [column.text(row.values.get(column.name), "") for column in table.measures]
        if main:
            gain = row.gain.get(main)
            line += [f"{x:.2f}" for x in (gain.value, gain.low, gain.high)] if gain else ["", "", ""]
        writer.writerow([*line, row.gap or "ok"])
    return out.getvalue()


def to_comparison_csv(table: Table) -> str:
    """Measured, paper and difference of every column that the paper has too."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = compared(table)
    names = [name for column in columns for name in (column.name, f"{column.name}_paper", f"{column.name}_difference")]
    writer.writerow([*(column.name for column in table.keys), *names])
    for row in table.rows:
        if row.paper:
            writer.writerow([*row.key, *(text for column in columns for text in three(row, column))])
    return out.getvalue()


def compared(table: Table) -> list[Column]:
    """The columns that some row has a number of the paper for."""
    return [column for column in table.accuracies if any(column.name in row.paper for row in table.rows)]


def three(row: Row, column: Column) -> tuple[str, str, str]:
    """Measured, paper and difference as printed; empty where there is none."""
    measured, paper = row.values.get(column.name), row.paper.get(column.name)
    difference = None if measured is None or paper is None else measured - paper
    signed = "" if difference is None else f"{'+' if difference >= 0 else '-'}{column.text(abs(difference))}"
    return column.text(measured, ""), column.text(paper, ""), signed


def to_markdown(table: Table, title: str, notes: list[str]) -> str:
    """The table as Markdown: `value ± half-width`, the best of a column bold, gaps in words; the paper's beside it."""
    shown = [*table.accuracies, *table.measures]
    head = [column.label for column in table.keys] + [_headed(column) for column in shown]
    gains = any(table.main in row.gain for row in table.rows)
    lines = [f"# {title}", "", _line(head + ["Gain"] * gains), _rule(len(table.keys), len(shown) + gains)]
    best = {column.name: table.best(column) for column in shown}
    for i, row in enumerate(table.rows):
        cells = [_markdown(text) for text in row.key]
        if row.gap:
            cells += [f"*{_markdown(row.gap)}*", *[""] * (len(shown) - 1 + gains)]
        else:
            for column in shown:
                text = column.text(row.values.get(column.name))
                text = f"**{text}**" if i in best[column.name] else text
                half = row.ci95.get(column.name)
                cells.append(text if half is None else f"{text} ± {half:.{column.digits}f}")
            cells += [gain_text(row, table.main)] * gains
        lines.append(_line(cells))
    if compared(table):
        lines += ["", f"## Measured / paper ({table.paper}) / difference", ""]
        lines += [_line([column.label for column in (*table.keys, *compared(table))])]
        lines += [_rule(len(table.keys), len(compared(table)))]
        for row in table.rows:
            if row.paper:
                values = [" / ".join(text or "–" for text in three(row, column)) for column in compared(table)]
                lines.append(_line([*map(_markdown, row.key), *values]))
    return "\n".join([*lines, "", *(f"- {_markdown(note)}" for note in notes), ""])


def gain_text(row: Row, column: str) -> str:
    """A gain with its interval; an asterisk only when the interval excludes zero."""
    gain = row.gain.get(column)
    if gain is None:
        return ""
    return gain.text() + (" *" if gain.clear else "")


def _headed(column: Column) -> str:
    return f"{column.label} ({column.unit})" if column.unit and column.kind == "measure" else column.label


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(keys: int, numbers: int) -> str:
    return _line(["---"] * keys + ["---:"] * numbers)


def _markdown(text: str) -> str:
    for mark in "\\|*_`<>[]":
        text = text.replace(mark, "\\" + mark)
    return text


def to_latex(table: Table, title: str, label: str) -> str:
    """The table in booktabs, a method's two rows together, the best of a column bold; intervals in small type."""
    shown = [*table.accuracies, *(column for column in table.measures if column.name in ("routing_kl", "mismatch"))]
    lines = [
        "% Needs \\usepackage{booktabs,graphicx}.",
        "\\begin{table}[t]",
        "\\centering",
        f"\\caption{{{_latex(title)}.{_LEGEND}}}",
        f"\\label{{tab:{label}}}",
        "\\resizebox{\\linewidth}{!}{%",
        f"\\begin{{tabular}}{{{'l' * len(table.keys)}{'r' * len(shown)}}}",
        "\\toprule",
        " & ".join([column.label for column in table.keys] + [_latex(_headed(column)) for column in shown]) + " \\\\",
    ]
    best = {column.name: table.best(column) for column in shown}
    for i, row in enumerate(table.rows):
        if table.begins_group(i):
            lines.append("\\midrule")
        cells = [_latex(text) for text in row.key]
        if row.gap:
            cells.append(f"\\multicolumn{{{len(shown)}}}{{l}}{{\\emph{{{_latex(_short(row.gap))}}}}}")
        else:
            for column in shown:
                text = column.text(row.values.get(column.name), "--")
                text = f"\\textbf{{{text}}}" if i in best[column.name] else text
                half = row.ci95.get(column.name)
                gain = row.gain.get(column.name)
                text += "$^{*}$" if gain and gain.clear else ""
                cells.append(text if half is None else f"{text}\\,{{\\scriptsize$\\pm${half:.1f}}}")
        lines.append(" & ".join(cells) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}}", "\\end{table}", ""])


_LEGEND = (
    " $\\pm$ is half a 95\\,\\% bootstrap interval over problems; $^{*}$ marks a difference from its baseline (of a"
    " HARC row the same merge without HARC) whose paired interval excludes zero."
)
_LATEX = {
    "\\": "\\textbackslash{}", "&": "\\&", "%": "\\%", "$": "\\$", "#": "\\#", "_": "\\_", "{": "\\{", "}": "\\}",
    "|": "\\textbar{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "\\textless{}",
    ">": "\\textgreater{}", "·": "--",
    "±": "$\\pm$", "–": "--", "…": "\\dots{}", "’": "'",
}  # fmt: skip


def _short(text: str, length: int = 80) -> str:
    return text if len(text) <= length else f"{text[: length - 1].rstrip()}…"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(mark, mark if mark.isascii() else "?") for mark in text)
