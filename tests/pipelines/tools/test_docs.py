"""The parts of docs/ that are made from the code are up to date."""

import re

import pytest

from pipelines.tools.docs import PARTS, made
from tests.places import ROOT


@pytest.mark.parametrize("page", PARTS)
def test_a_page_is_what_the_code_makes(page):
    text = (ROOT / page).read_text()
    assert made(page, text) == text, "run `python -m pipelines.tools.docs`"


def test_an_edited_part_is_made_anew():
    text = (ROOT / "docs/merge.md").read_text()
    assert made("docs/merge.md", text.replace("`merge.density`", "`merge.dense`")) == text
    with pytest.raises(ValueError, match=re.escape("expected <!-- made: methods -->")):
        made("docs/merge.md", "# merge")
