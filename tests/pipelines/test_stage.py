"""Stage directories: complete or absent, made once, noticed when damaged."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from pipelines.manifest import damage
from pipelines.stage import STAGES, Node, Runner, StageSpec
from tests.pipelines.stages import TraceConfig


@pytest.fixture(autouse=True)
def trace_stage(monkeypatch):
    monkeypatch.setitem(STAGES, "trace", StageSpec("tests.pipelines.stages:trace"))


def node(config: TraceConfig, label: str = "one", **inputs: Node) -> Node:
    return Node("trace", label, config, inputs)


def _register_and_run(outputs: str, config: TraceConfig) -> None:
    STAGES["trace"] = StageSpec("tests.pipelines.stages:trace")
    Runner(Path(outputs)).run(node(config))


def in_child(outputs: Path, config: TraceConfig) -> multiprocessing.Process:
    child = multiprocessing.get_context("fork").Process(target=_register_and_run, args=(str(outputs), config))
    child.start()
    return child


def test_a_stage_is_made_once_and_then_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outputs = tmp_path / "outputs"
    one = node(TraceConfig(trace="trace", text="a"))
    assert Runner(outputs).run(one).made
    again = Runner(outputs).run(node(TraceConfig(trace="trace", text="a")))
    assert not again.made and (again.path / "text").read_text() == "a"
    assert Path("trace").read_text().split() == ["a"]


def test_manifest_records_what_made_the_stage(tmp_path):
    made = Runner(tmp_path).run(node(TraceConfig(text="a"), up=node(TraceConfig(text="b"), "up")))
    manifest = json.loads((made.path / "manifest.json").read_text())
    assert manifest["config"]["text"] == "a" and manifest["metrics"] == {"text": "a"}
    assert manifest["files"]["text"]["bytes"] == 2 and len(manifest["files"]["text"]["sha256"]) == 64
    assert manifest["inputs"]["up"].startswith(str(tmp_path)) and manifest["peak_memory_gb"] > 0
    assert manifest["versions"]["torch"] and manifest["seconds"] >= 0


def test_key_follows_config_inputs_and_version_but_not_options(monkeypatch):
    base = node(TraceConfig(text="a"))
    assert base.key == node(TraceConfig(text="a")).key
    assert base.key != node(TraceConfig(text="b")).key
    assert base.key != node(TraceConfig(text="a"), up=node(TraceConfig(text="b"))).key
    assert base.key == Node("trace", "one", TraceConfig(text="a"), {}, {"processes": 2}).key
    monkeypatch.setitem(STAGES, "trace", StageSpec("tests.pipelines.stages:trace", version=2))
    assert base.key != node(TraceConfig(text="a")).key


def test_key_follows_a_local_file_that_the_config_names(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("1")
    before = node(TraceConfig(text=str(file))).key
    file.write_text("22")
    assert node(TraceConfig(text=str(file))).key != before


@pytest.mark.parametrize("harm", ["missing", "cut", "changed", "manifest"])
def test_damage_is_named_and_the_stage_made_again(tmp_path, harm, caplog):
    one = node(TraceConfig(text="abc"))
    path = Runner(tmp_path).run(one).path
    victim = path / "text"
    if harm == "missing":
        victim.unlink()
    elif harm == "cut":
        victim.write_text("a")
    elif harm == "changed":
        victim.write_text("abd")
    else:
        (path / "manifest.json").write_text("{")
    assert damage(path)
    again = Runner(tmp_path).run(one)
    assert again.made and (again.path / "text").read_text() == "abc" and damage(again.path) is None
    assert str(path) in caplog.text and "damaged" in caplog.text


def test_a_touched_but_equal_file_is_not_damage(tmp_path):
    path = Runner(tmp_path).run(node(TraceConfig(text="abc"))).path
    os.utime(path / "text", (1, 1))
    assert damage(path) is None


def test_failure_leaves_nothing_under_the_final_name(tmp_path):
    one = node(TraceConfig(fail=True))
    with pytest.raises(ValueError, match="asked to fail"):
        Runner(tmp_path).run(one)
    assert not one.path(tmp_path).exists()


def test_failure_to_remake_keeps_what_was_there(tmp_path, monkeypatch):
    one = node(TraceConfig(text="abc"))
    path = Runner(tmp_path).run(one).path
    (path / "extra").write_text("still here")
    (path / "text").write_text("harmed")
    monkeypatch.setitem(STAGES, "trace", StageSpec("tests.pipelines.stages:no_such_function"))
    with pytest.raises(AttributeError):
        Runner(tmp_path).run(node(TraceConfig(text="abc")))
    assert (path / "extra").read_text() == "still here"


def test_a_killed_stage_leaves_nothing_final_and_is_made_by_the_next(tmp_path):
    child = in_child(tmp_path, TraceConfig(text="x", die=True))
    child.join()
    assert child.exitcode == -9
    killed = node(TraceConfig(text="x", die=True))
    assert not killed.path(tmp_path).exists()
    assert (tmp_path / "trace" / ".partial" / killed.path(tmp_path).name / "text").exists()
    assert Runner(tmp_path).run(node(TraceConfig(text="x"))).made


def test_processes_that_want_the_same_stage_make_it_once(tmp_path, monkeypatch):
    outputs = tmp_path / "outputs"
    monkeypatch.chdir(tmp_path)
    settings = TraceConfig(trace="trace", text="x", seconds=1.0)
    children = [in_child(outputs, settings) for _ in range(3)]
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert (tmp_path / "trace").read_text().split() == ["x"]


def test_chain_lists_every_needed_stage_once_in_order():
    root = node(TraceConfig(text="root"), "root")
    left, right = node(TraceConfig(text="l"), "l", up=root), node(TraceConfig(text="r"), "r", up=root)
    labels = [one.label for one in node(TraceConfig(), "end", left=left, right=right).chain()]
    assert labels == ["root", "l", "r", "end"]


def _run_pair(outputs: str, first: str) -> None:
    STAGES["trace"] = StageSpec("tests.pipelines.stages:trace")
    nodes = [node(TraceConfig(trace=f"trace-{first}", text=text, seconds=1.0), text) for text in ("a", "b")]
    Runner(Path(outputs)).run_all(nodes)


def test_a_process_takes_other_work_while_another_holds_a_stage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_run_pair, args=(str(tmp_path / "o"), "shared")) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    manifests = [json.loads(path.read_text()) for path in (tmp_path / "o").glob("trace/*/manifest.json")]
    assert sorted(Path("trace-shared").read_text().split()) == ["a", "b"] and len(manifests) == 2
