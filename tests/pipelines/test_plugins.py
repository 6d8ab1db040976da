"""A merging method in one file outside the package: library function, typed option, help, place in table 1, label."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from safetensors.torch import load_file

from harc.merging import registry
from pipelines.chain.cell import cell_of
from pipelines.config import Config, schema
from pipelines.config.merging import names_of
from pipelines.config.plugins import load_plugins
from tests.harc.merging.merge_models import save_model
from tests.pipelines.composing import hydra_conf  # noqa: F401
from tests.places import ROOT

BLEND = '''
"""Blend: θ = θ_base + share Σ w_i τ_i."""

from dataclasses import dataclass

from harc.merging import MergeSettings, method, setting


@dataclass(frozen=True)
class BlendSettings(MergeSettings):
    share: float = setting(0.5, "how far to go", at_least=0, at_most=1, published=(0.75,), tries=(0.25, 0.5))


@method("blend", label="Blended", settings=BlendSettings)
def blend(base, sources, weights, settings):
    """The base moved towards the sources."""
    steps = [weight * (source - base) for source, weight in zip(sources, weights)]
    return base + settings.share * sum(steps)
'''


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/my_blend.py").write_text(BLEND)
    return tmp_path / "mine"


def python(*arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "COLUMNS": "300", "PYTHONPATH": path, **more}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python(str(ROOT / "run.py"), "plugins=[my_blend]", f"outputs={folder / 'o'}", *arguments, cwd=folder)


def test_the_library_merges_with_it(folder):
    base = save_model(folder / "base")
    sources = [save_model(folder / str(seed), near=base, seed=seed) for seed in (1, 2)]
    script = (
        "import sys, json, harc, my_blend\n"
        "report = harc.merge('blend', sys.argv[2:4], sys.argv[1], 'out', progress=False, share=0.25)\n"
        "print(json.dumps(report.settings))"
    )
    done = python("-c", script, str(base), *map(str, sources), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"share": 0.25}
    start, first, second, merged = (load_file(path / "model.safetensors") for path in (base, *sources, folder / "out"))
    for name, value in merged.items():
        mean = (first[name] + second[name]) / 2
        assert (value - (start[name] + 0.25 * (mean - start[name]))).abs().max() < 1e-6, name


def test_table_1_takes_it_with_its_label(folder):
    done = run(folder, "+experiment=table1", "merges=[ties,blend]", "plan=true")
    assert done.returncode == 0, done.stderr
    rows = ["Individual", "TIES-Merging", "TIES-Merging + HARC", "Blended", "Blended + HARC"]
    assert re.findall(r"^(\S.*?) \(tiny\) *$", done.stdout, re.MULTILINE) == rows
    assert "merge/tiny-blend-" in done.stdout


@pytest.mark.slow
def test_the_grid_tries_what_it_declares(folder):
    done = run(folder, "+experiment=grid", "merges=[blend]", "grid_alpha=[]", "plan=true")
    assert done.returncode == 0, done.stderr
    shown = set(re.findall(r"Blended \[([^\]]*)\]", done.stdout))
    assert shown == {"merge=blend merge.share=0.25", "merge=blend merge.share=0.5"}


def test_help_names_it_and_explains_its_settings(folder):
    text = run(folder, "merge=blend", "--help").stdout
    assert re.search(r"^ *merge .*\bblend\b", text, re.MULTILINE)
    assert "share (0.5): how far to go (at least 0 and at most 1; published: 0.75)" in text


@pytest.fixture
def loaded(folder, monkeypatch, hydra_conf):  # noqa: F811
    """The plugin in this process, ready to compose."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    load_plugins(["merge=blend", "plugins=[my_blend]"])
    schema.register()
    yield
    del sys.modules["my_blend"]


def composed(*overrides: str) -> Config:
    return OmegaConf.to_object(compose("config", overrides=["merge=blend", *overrides]))


def test_its_settings_are_typed_and_checked(loaded):
    assert merged_settings(composed("merge.share=0.3")) == {"share": 0.3}
    assert merged_settings(composed("merge.published=true")) == {"share": 0.75}
    with pytest.raises(ConfigCompositionException, match=r"merge\.share"):
        composed("merge.share=much")
    with pytest.raises(ConfigCompositionException, match="shares"):
        composed("merge.shares=0.5")
    with pytest.raises(ValueError, match=r"merge method blend: share is 1\.5, expected at least 0 and at most 1"):
        cell_of(composed("merge.share=1.5"))
    assert names_of("all")[:3] == ["average", "blend", "breadcrumbs"]


def merged_settings(config: Config) -> dict[str, float]:
    return cell_of(config).merged.config.settings


def test_an_edited_formula_is_merged_anew(loaded, folder):
    before = cell_of(composed()).merged.key
    assert cell_of(composed()).merged.key == before
    (folder / "my_blend.py").write_text(BLEND.replace("settings.share * sum", "settings.share**2 * sum"))
    assert cell_of(composed()).merged.key != before


def test_an_installed_packages_entry_point_needs_no_word(folder):
    site = folder / "site"
    (site / "blend-1.0.dist-info").mkdir(parents=True)
    (site / "blend-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: blend\nVersion: 1.0\n")
    (site / "blend-1.0.dist-info/entry_points.txt").write_text("[harc.plugins]\nblend = my_blend\n")
    (folder / "my_blend.py").rename(site / "my_blend.py")
    path = os.pathsep.join([str(ROOT), str(site)])
    done = python("-c", "import harc.merging; print(*harc.merging.METHODS)", cwd=folder, PYTHONPATH=path)
    assert "blend" in done.stdout.split(), done.stderr


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("plugins=[no_such]", "plugin no_such: no such module; its folder must be the working directory or on"),
        ("plugins=[wants_more]", "plugin wants_more: No module named 'not_there'"),
        ("plugins=[takes_a_name]",
         "merge method 'ties' is in two modules, harc.merging.methods.task_vectors.ties and takes_a_name"),
        ("plugins=3", "plugins=3: expected a list of module names"),
    ],
)  # fmt: skip
def test_a_plugin_that_cannot_be_used_is_named_in_one_line(folder, argument, says):
    (folder / "wants_more.py").write_text("import not_there\n")
    (folder / "takes_a_name.py").write_text(BLEND.replace('"blend"', '"ties"'))
    done = python(str(ROOT / "run.py"), argument, "plan=true", cwd=folder)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {says}"), done.stderr
