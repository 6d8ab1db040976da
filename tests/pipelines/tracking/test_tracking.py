"""Tracking: what an offline run holds when it is read back, and that it never takes an experiment down."""

import logging
import os
from dataclasses import replace

import pytest

from pipelines.config import TrackerConfig
from pipelines.record import CalibrationResult, LayerResult, read_record
from pipelines.tracking import runs as tracking
from pipelines.typed import to_json
from tests.pipelines.report.records import table1_cells
from tests.pipelines.tracking.offline_runs import history, read_run, summary_of


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """A merge with HARC, logged offline: its cell, its baseline, and its run's folder and records."""
    os.environ.pop("WANDB_API_KEY", None)
    cells = {(cell.row.method, cell.row.harc): cell for cell in table1_cells(problems=20)}
    baseline, cell = cells["WUDI-Merging", "no"], cells["WUDI-Merging", "yes"]
    cell = replace(cell, routing_before=baseline.routing)
    root = tmp_path_factory.mktemp("tracked")
    run = tracking.log_cell(TrackerConfig(directory=str(root)), cell)
    tracking.flush()
    (folder,) = (root / "wandb").glob(f"offline-run-*-{run}")
    return cell, baseline, read_run(folder)


def test_an_offline_run_holds_routing_kl_by_layer_before_and_after(offline):
    cell, baseline, records = offline
    rows = [row for row in history(records) if "layer" in row]
    assert [row["layer"] for row in rows] == [1, 2, 3, 4]
    for domain in ("math", "code"):
        assert [row[f"routing_kl/{domain}"] for row in rows] == pytest.approx(cell.routing.kl[domain])
        before = [row[f"before/routing_kl/{domain}"] for row in rows]
        assert before == pytest.approx(baseline.routing.kl[domain])
    assert rows[0]["mismatch/math"] == pytest.approx(100 * cell.routing.mismatch["math"][0])
    for name in ("mismatch/math", "logit_shift/code", "before/mismatch/math", "calibration/kl_before"):
        assert all(name in row for row in rows)


def test_layers_are_the_x_axis(offline):
    defined = {}
    for record in offline[2]:
        if record.WhichOneof("record_type") == "metric":
            defined[record.metric.name or record.metric.glob_name] = record.metric.step_metric
    for name in ("routing_kl/*", "before/routing_kl/*", "mismatch/*", "logit_shift/*", "calibration/*"):
        assert defined[name] == "layer"
    assert defined["cg_residual/*"] == "cg_iteration"


def test_residuals_by_iteration_end_where_each_layer_ended(offline):
    cell, _, records = offline
    rows = [row for row in history(records) if "cg_iteration" in row]
    for one in cell.calibration.layers:
        series = [row[key] for row in rows if (key := f"cg_residual/layer_{one.layer + 1:02d}") in row]
        assert series == pytest.approx(one.residuals)


def test_the_summary_has_the_tables_numbers(offline):
    cell, _, records = offline
    found = summary_of(records)
    shares = {name: 100 * task.accuracy for name, task in cell.tasks.items()}
    assert found["accuracy/gsm8k"] == pytest.approx(shares["gsm8k"])
    assert found["accuracy/overall"] == pytest.approx(sum(shares.values()) / 4)
    assert found["routing_kl"] == pytest.approx(cell.routing.kl_mean)
    assert found["accuracy_ci95/overall"] > 0


def test_runs_are_grouped_and_named_by_scale(offline):
    (run,) = [record.run for record in offline[2] if record.WhichOneof("record_type") == "run"][:1]
    assert run.run_group == "table1"
    assert run.display_name == "WUDI-Merging + HARC (tiny)"
    assert "tiny" in run.tags


def test_long_solves_are_thinned_but_keep_their_last_residual():
    layers = [LayerResult(0, residuals=[1 / (i + 1) for i in range(1000)]), LayerResult(1, residuals=[1.0, 0.5])]
    cell = replace(table1_cells(problems=5)[2], calibration=CalibrationResult(layers))
    points = list(tracking.residual_points(cell))
    assert len(points) <= tracking.RESIDUAL_POINTS + 2
    assert points[-1] == {"cg_iteration": 999, "cg_residual/layer_01": 1 / 1000}
    assert points[1]["cg_residual/layer_02"] == 0.5


def test_none_writes_nothing(tmp_path):
    assert tracking.log_cell(TrackerConfig(kind="none", directory=str(tmp_path)), table1_cells(problems=5)[0]) is None
    assert tracking.log_report(TrackerConfig(kind="none", directory=str(tmp_path)), "table1", "tiny", tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_a_failure_is_a_warning_with_its_reason(tmp_path, caplog):
    occupied = tmp_path / "file"
    occupied.write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        assert tracking.log_cell(TrackerConfig(directory=str(occupied)), table1_cells(problems=5)[0]) is None
    assert "Individual (tiny)" in caplog.text and "FileExistsError" in caplog.text


def test_a_report_folder_becomes_an_artifact(tmp_path):
    folder = tmp_path / "table1-tiny"
    folder.mkdir()
    (folder / "table.csv").write_text("method,harc,overall\nDARE,no,50.00\n")
    run = tracking.log_report(TrackerConfig(directory=str(tmp_path)), "table1", "tiny", folder)
    (logged,) = (tmp_path / "wandb").glob(f"offline-run-*-{run}")
    named = set()
    for record in read_run(logged):
        for one in (record.artifact, record.request.log_artifact.artifact):
            named.add((one.type, one.name))
    assert ("report", "table1-tiny") in named


def test_the_same_cell_has_the_same_run():
    one, two = table1_cells(problems=5)[1:3]
    assert (
        tracking._identity(one) == tracking._identity(read_record(to_json(one), "cell.json")) != tracking._identity(two)
    )
