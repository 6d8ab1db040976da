"""The validate stage on a model that has learned one answer by heart."""

import json

import pytest

from pipelines.data.source import DataSource
from pipelines.stages.validate import ValidateConfig, validate
from tests.pipelines.small_world import sums, write_jsonl
from tests.pipelines.stages.test_sample import TRANSFORMERS, sevens, source, world  # noqa: F401


def config(path: str, **settings) -> ValidateConfig:
    return ValidateConfig(records={"math": DataSource(path)}, max_new_tokens=48, engine=TRANSFORMERS, **settings)


def test_right_answers_to_held_out_records_are_counted(world, source, tmp_path):  # noqa: F811
    metrics = validate(config("world:calibration/math.jsonl"), {"world": world, "model": source}, tmp_path)
    result = metrics["tasks"]["math_validation"]
    assert result["ids"] == [row["id"] for row in sevens(6)] and result["counts"] == [0, 1, 0, 1, 0, 1]
    assert (result["accuracy"], result["samples"]) == (0.5, 1) and result["ci95"] > 0
    rows = [json.loads(line) for line in (tmp_path / "samples/math_validation.jsonl").read_text().splitlines()]
    assert [row["responses"][0]["text"] for row in rows] == ["It is 7.\n#### 7"] * 6
    first = validate(config("world:calibration/math.jsonl", limit=2), {"world": world, "model": source}, tmp_path)
    assert first["tasks"]["math_validation"]["counts"] == [0, 1]


def test_records_that_nothing_judges_are_refused_before_a_model_is_loaded(tmp_path):
    text = write_jsonl(tmp_path / "chat.jsonl", [{**row, "task": "chat"} for row in sums(2)])
    with pytest.raises(ValueError, match=r"chat\.jsonl: records without a task that judges answers"):
        validate(config(str(text), model="nowhere"), {}, tmp_path / "out")
