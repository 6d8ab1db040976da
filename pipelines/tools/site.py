"""What `make docs` adds to the pages of docs/: a front page made of README.md, and formulas as MathML.

MkDocs calls these functions by their names (`hooks` of mkdocs.yml).
"""

import re
from typing import Any

import latex2mathml.converter
from mkdocs.structure.files import File, Files

from pipelines.places import ROOT

_DISPLAY = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")
_INLINE = re.compile(r"\$`(.+?)`\$")


def on_files(files: Files, config: Any) -> Files:
    """Adds README.md as the front page; its links lead from the root of the repository, the site's from docs/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown: str, **context: Any) -> str:
    """Renders formulas as GitHub does: ```math blocks and $`inline`$. A link to code becomes its text."""
    markdown = _CODE.sub(r"\1", markdown)
    markdown = _DISPLAY.sub(lambda found: f"\n{_mathml(found[1], 'block')}\n", markdown)
    return _INLINE.sub(lambda found: _mathml(found[1], "inline"), markdown)


def _mathml(formula: str, display: str) -> str:
    rendered = latex2mathml.converter.convert(formula.strip(), display=display)
    # In a span, since Markdown takes a line that begins with <math> for a block of its own.
    return f"<span>{rendered}</span>" if display == "inline" else rendered
