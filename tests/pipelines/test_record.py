"""Records on disk: what is written is read back; older and newer ones are read too; wrong ones name file and field."""

import copy
import dataclasses
import json
from dataclasses import replace

import pytest

from harc.calibration.report import CalibrationReport, LayerCalibration
from harc.diagnosis import RoutingReport
from pipelines.record import (
    VERSION,
    CalibrationResult,
    RoutingResult,
    read_record,
    read_records,
    record_lines,
    write_record,
)
from pipelines.stages.diagnose import MEANS
from pipelines.typed import ShapeError, from_json, to_json
from tests.pipelines.report import records


@pytest.fixture
def cell():
    """A calibrated cell with everything that a record can have."""
    made = records.record("table5", "wudi", 0.5, problems=5, calibrate={})
    two = replace(made.calibration, layers=made.calibration.layers[:2])
    return replace(made, routing_before=made.routing, calibration_two=two, cost={"merge": records.cost(1.0, 2.0)})


def test_a_record_is_read_back_as_it_was_written(cell, tmp_path):
    write_record(tmp_path / "0", cell)
    write_record(tmp_path / "10", records.failed(cell))
    write_record(tmp_path / "2", cell)
    assert read_records(tmp_path) == [cell, cell, records.failed(cell)]
    (line,) = record_lines([cell]).splitlines()
    assert read_record(json.loads(line), "cells.jsonl") == cell and json.loads(line)["version"] == VERSION


def test_the_line_of_cells_jsonl_has_the_names_that_older_readers_know(cell):
    line = to_json(cell)
    assert {"experiment", "scale", "row", "merge", "calibrate", "swap", "sft", "config", "versions", "status", "error",
            "tasks", "routing", "routing_before", "calibration", "calibration_two", "cost", "runtime_s",
            "peak_memory_gb", "stages", "overrides"} <= set(line)  # fmt: skip
    assert line["row"] == {"method": "WUDI-Merging", "harc": "yes"}
    assert {"task", "domain", "accuracy", "ci95", "samples", "ids", "counts"} <= set(line["tasks"]["gsm8k"])
    assert set(line["stages"][0]) == {"stage", "label", "key", "path", "made", "seconds", "peak_memory_gb"}


def test_a_record_without_a_version_or_with_nulls_is_an_older_one(cell):
    older = to_json(replace(cell, cost={}))
    del older["version"], older["seed"]
    older |= {"cost": None, "calibration_two": None, "routing_before": None}
    found = read_record(older, "cell.json")
    assert found == replace(cell, cost={}, calibration_two=None, routing_before=None) and found.seed == 0


def test_fields_of_later_code_are_kept(cell):
    later = to_json(cell)
    later["energy_j"] = 5.0
    later["routing"]["entropy"] = {"math": [0.1]}
    later["calibration"]["layers"][0]["target_kl"] = 0.2
    assert to_json(read_record(later, "cell.json")) == later


def test_a_record_of_a_later_version_is_refused(cell):
    with pytest.raises(ShapeError, match=rf"cell.json: a record of version {VERSION + 1}; .* up to {VERSION}"):
        read_record({**to_json(cell), "version": VERSION + 1}, "cell.json")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("tasks", "gsm8k", "samples"), "16", r"tasks\.gsm8k\.samples: expected int, found str '16'"),
        (("tasks", "gsm8k", "counts", 2), None, r"tasks\.gsm8k\.counts\[2\]: expected int, found NoneType None"),
        (("routing", "kl", "math"), 0.5, r"routing\.kl\.math: expected a list, found float 0\.5"),
        (("row",), "WUDI", r"row: expected the fields of RowLabels, found str 'WUDI'"),
        (("stages", 0, "made"), 1, r"stages\[0\]\.made: expected bool, found int 1"),
        (("stages",), {}, r"stages: expected a list, found dict \{\}"),
        (("sft",), "no", r"sft: expected bool, found str 'no'"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(cell, path, value, message, tmp_path):
    wrong = copy.deepcopy(to_json(cell))
    inside = wrong
    for part in path[:-1]:
        inside = inside[part]
    inside[path[-1]] = value
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "cell.json").write_text(json.dumps(wrong))
    with pytest.raises(ShapeError, match=rf"3/cell\.json: {message}"):
        read_records(tmp_path)


def test_a_missing_field_and_a_file_that_is_no_json_are_named(cell, tmp_path):
    short = to_json(cell)
    del short["tasks"]["gsm8k"]["domain"]
    with pytest.raises(ShapeError, match=r"cell\.json: tasks\.gsm8k\.domain is missing \(fields found: task, accuracy"):
        read_record(short, "cell.json")
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "cell.json").write_text('{"experiment": ')
    with pytest.raises(ShapeError, match=r"0/cell\.json: no JSON"):
        read_records(tmp_path)


def test_a_setting_that_the_configuration_lacks_is_named(cell):
    assert cell.setting("calibrate.alpha") == 0.9
    with pytest.raises(ShapeError, match=r"WUDI-Merging \+ HARC \(table5\): its config has no calibrate.gamma"):
        cell.setting("calibrate.gamma")


def test_harcs_routing_report_is_held_whole():
    report = RoutingReport([0, 2], {0: [0.1, 0.2]}, {0: [0.5, 0.5]}, {0: [0.0, 0.1]},
                           shift_quantiles={0: {0.5: 0.1}}, shift_histogram={0: {"edges": [0.0, 1.0], "shares": [1.0]}},
                           tokens={0: 7})  # fmt: skip
    held = from_json(RoutingResult, report.to_dict(), "routing.json")
    assert held.kl == {"0": [0.1, 0.2]} and held.shift_quantiles == {"0": {"0.5": 0.1}} and held.other == {}
    assert held.shift_histogram["0"].shares == [1.0] and held.by_layer("mismatch") == {"0": [0.5, 0.5]}


def test_every_measure_that_the_diagnose_stage_gives_has_its_field():
    given = {one.name for one in dataclasses.fields(RoutingReport)} | {f"{name}_mean" for name in MEANS}
    assert given == {one.name for one in dataclasses.fields(RoutingResult)} - {"other"}


def test_harcs_calibration_report_is_held_whole():
    layer = LayerCalibration(3, 5, 1e-7, True, [1.0, 1e-7], "tolerance", "jacobi", 0.1, 0.5, 0.4, [0.5], [0.4])
    report = CalibrationReport([layer], [10], 2.0, 1.5, {"alpha": 0.9}).to_dict()
    held = from_json(CalibrationResult, report, "manifest.json")
    assert held.layers[0].iterations == 5 and held.layers[0].kl_after == 0.4
    assert to_json(held) == report
