"""`make docs`: the site builds without a warning, so every link and anchor leads somewhere; formulas are rendered."""

import os
import subprocess
import sys

import pytest

from tests.places import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


def test_every_page_is_built(site):
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} | {"index", "404"} == {
        path.stem for path in site.glob("*.html")
    }


def test_formulas_are_rendered_and_the_reference_comes_from_docstrings(site):
    method = (site / "method.html").read_text()
    assert method.count("<math") > 20
    assert "```math" not in method and "$`" not in method
    assert "harc.calibration.driver.calibrate" in (site / "reference.html").read_text()
    assert "images/table1-tiny.png" in (site / "index.html").read_text()
