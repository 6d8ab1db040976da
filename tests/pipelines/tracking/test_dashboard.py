"""The W&B workspace: all that its panels, filters and columns name is what a real offline run of ours logged."""

import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from harc.merging.registry import methods
from pipelines.cli import CONF
from pipelines.config import Config, TrackerConfig, schema
from pipelines.tracking import runs as tracking
from pipelines.tracking.dashboard import make_dashboard, read_choices
from tests.pipelines.report.records import record
from tests.pipelines.test_cli import run
from tests.pipelines.tracking.offline_runs import history, read_run, summary_of


def composed(*overrides: str) -> Config:
    schema.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_object(compose("config", overrides=["+experiment=dashboard", *overrides]))


@pytest.fixture(scope="module")
def logged(tmp_path_factory) -> dict[str, Any]:
    """What one run logged, read back from W&B's own file: rows of its history, summary, config."""
    os.environ.pop("WANDB_API_KEY", None)
    root = tmp_path_factory.mktemp("tracked")
    three = ("chat", "math", "code")
    before = record("table5", "wudi", 0.5, domains=three)
    cell = record("table5", "wudi", 0.55, domains=three, calibrate={}, routing_before=before.routing)
    name = tracking.log_cell(TrackerConfig(directory=str(root)), cell)
    tracking.flush()
    (folder,) = (root / "wandb").glob(f"offline-run-*-{name}")
    records = read_run(folder)
    configs = [record.run.config.update for record in records if record.WhichOneof("record_type") == "run"]
    return {
        "history": history(records),
        "summary": summary_of(records),
        "config": {item.key: json.loads(item.value_json) for one in configs for item in one},
    }


@pytest.fixture(scope="module")
def section(tmp_path_factory) -> dict[str, Any]:
    """The workspace as it is written, where W&B expects its contents."""
    path = make_dashboard(composed(f"outputs={tmp_path_factory.mktemp('o')}"))
    return json.loads(path.read_text())["spec"]["section"]


def panels(section: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    banks = section["panelBankConfig"]["sections"]
    return [panel["config"] for bank in banks for panel in bank["panels"] if panel["viewType"] == kind]


def test_every_line_is_logged_against_the_axis_of_its_panel(section, logged):
    lines = panels(section, "Run History Line Plot")
    assert len(lines) >= 10
    for panel in lines:
        rows = [row for row in logged["history"] if panel["xAxis"] in row]
        found = {key for row in rows for key in row if not key.startswith("_")} - {panel["xAxis"]}
        for metric in panel["metrics"]:
            assert metric in found, f"{panel['chartTitle']}: no run logs {metric} by {panel['xAxis']}"
        if "metricRegex" in panel:
            assert {key for key in found if re.fullmatch(panel["metricRegex"], key)} == found
        assert panel["metrics"] or "metricRegex" in panel


def test_routing_is_shown_without_and_with_harc_for_the_mean_and_every_domain(section):
    shown = [set(panel["metrics"]) for panel in panels(section, "Run History Line Plot")]
    for measure in ("routing_kl", "mismatch"):
        for domain in ("mean", "math", "code", "chat"):
            assert {f"{measure}/{domain}", f"before/{measure}/{domain}"} in shown
    assert {"calibration/iterations"} in shown


def test_bars_are_the_accuracies_of_the_summary(section, logged):
    bars = [metric for panel in panels(section, "Bar Chart") for metric in panel["metrics"]]
    assert bars[0] == "accuracy/overall"
    assert set(bars) == {key for key in logged["summary"] if key.startswith("accuracy/")}


def test_filters_and_columns_name_what_a_run_holds(section, logged):
    (runs,) = section["runSets"]
    offered = {one["key"]["name"]: one for one in runs["filters"]["filters"]}
    assert set(offered) == {"experiment_name", "scale_name", "method_name"}
    for name, one in offered.items():
        assert one["key"]["section"] == "config" and one["op"] == "IN"
        assert logged["config"][name] in one["value"]
    for column in runs["runFeed"]["columnOrder"][1:]:
        kind, _, name = column.partition(":")
        assert name in logged[kind], f"no run holds {column}"
    assert {key["key"]["name"] for key in runs["sort"]["keys"]} <= set(logged["config"])
    assert runs["grouping"] == []


def test_filters_offer_every_experiment_with_runs_every_scale_and_every_merge():
    choices = read_choices(CONF)
    assert {"table1", "cells"} <= set(choices.experiments)
    assert not {"dashboard", "calibrate", "paper"} & set(choices.experiments)
    assert set(choices.scales) == {file.stem for file in (CONF / "scale").glob("[!_]*.yaml")}
    assert set(choices.methods) == {"individual", "base", *methods()}


def test_offline_it_is_written_and_says_how_to_publish(tmp_path):
    done = run("+experiment=dashboard", "tracker.mode=offline", f"outputs={tmp_path}")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if "workspace.json" in line]
    assert "not published" in line and "WANDB_API_KEY" in line and "tracker.mode=online" in line
    assert json.loads((tmp_path / "dashboard" / "workspace.json").read_text())["project"] == "harc"


class Answers(BaseHTTPRequestHandler):
    """The three requests of W&B's GraphQL that publishing makes; `saved` keeps what is to be stored."""

    saved: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
        viewer = {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
        data: dict[str, Any] = {"viewer": viewer}
        if "upsertView" in asked.get("query", ""):
            self.saved.append(asked["variables"])
            data["upsertView"] = {"view": {"id": "view-id", "name": asked["variables"]["name"]}, "inserted": True}
        body = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
def test_online_it_is_sent_and_sent_again_it_replaces_itself(tmp_path, monkeypatch):
    """By the library's own requests, to a server on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", 40 * "a")
    for _ in range(2):
        done = run("+experiment=dashboard", f"outputs={tmp_path}")
        assert done.returncode == 0, done.stderr
        assert f":{server.server_port}/me/harc?nw=" in done.stdout + done.stderr
    server.shutdown()
    first, again = Answers.saved
    assert first["entityName"] == "me" and first["projectName"] == "harc" and "id" not in first
    assert again["id"] == "view-id" and again["name"] == first["name"]
    written = json.loads((tmp_path / "dashboard" / "workspace.json").read_text())
    assert json.loads(again["spec"]) == written["spec"]


def test_a_project_that_does_not_take_it_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # nobody is logged in there
    done = run("+experiment=dashboard", "tracker.mode=online", f"outputs={tmp_path / 'o'}")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "workspace.json holds the workspace" in line and "No API key configured" in line
