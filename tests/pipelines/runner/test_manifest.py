"""A finished directory whose manifest or files are damaged in any way is named, never an exception."""

import json

import pytest

from harc.files import write_synced
from pipelines.runner.manifest import MANIFEST, damage, describe_files


@pytest.fixture
def finished(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    manifest = {"files": describe_files(tmp_path), "metrics": {}}
    write_synced(tmp_path / MANIFEST, json.dumps(manifest))
    assert damage(tmp_path) is None
    return tmp_path


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        '{"files": []}',
        '{"files": {"result.json": 3}, "metrics": {}}',
        '{"files": {"result.json": {}}, "metrics": {}}',
        '{"files": {}}',
        '{"model_type": "olmoe"}',
    ],
)
def test_a_damaged_manifest_is_named(finished, content) -> None:
    (finished / MANIFEST).write_text(content)
    assert damage(finished) == f"{finished / MANIFEST} is no manifest of a finished stage"


def test_a_missing_manifest_is_named(finished) -> None:
    (finished / MANIFEST).unlink()
    assert damage(finished) == f"{finished / MANIFEST} can't be read (No such file or directory)"


@pytest.mark.parametrize("content", [None, "", "{}  ", "{\n"])
def test_a_damaged_file_is_named(finished, content) -> None:
    (finished / "result.json").unlink()
    if content is not None:
        (finished / "result.json").write_text(content)
    said = damage(finished)
    assert said is not None and said.startswith(str(finished / "result.json"))
