"""Stage directories: complete or absent, made once, noticed when damaged."""

import json
import logging
import multiprocessing
import os
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from pipelines.runner.make import Runner
from pipelines.runner.manifest import damage
from pipelines.runner.stage import Node
from tests.pipelines.runner.stages_at_work import PATIENCE, TRACE, TraceConfig, node

FORK = multiprocessing.get_context("fork")


def in_child(outputs: Path, config: TraceConfig, waits: Event | None = None, **options) -> multiprocessing.Process:
    """Another process that makes the stage; `waits` is set once it says that it waits for one at work."""

    def run() -> None:
        if waits is not None:
            logger = logging.getLogger("pipelines.runner.claims")
            logger.setLevel(logging.INFO)
            logger.addFilter(lambda record: record.msg.startswith("waiting:") and not waits.set())
        Runner(outputs).run(Node(TRACE, "one", config, {}, options))

    child = FORK.Process(target=run)
    child.start()
    return child


def joined(*children: multiprocessing.Process) -> list[int | None]:
    for child in children:
        child.join(PATIENCE)
    return [child.exitcode for child in children]


def test_a_stage_is_made_once_and_then_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, outputs = TraceConfig(trace="trace", text="a"), tmp_path / "outputs"
    assert Runner(outputs).run(node(config)).made
    read = Runner(outputs).run(node(config))
    assert not read.made and (read.path / "text").read_text() == "a"
    assert Path("trace").read_text().split() == ["a"]


def test_manifest_records_what_made_the_stage(tmp_path):
    before = time.time()
    made = Runner(tmp_path).run(node(TraceConfig(text="a"), up=node(TraceConfig(text="b"), "up")))
    manifest = json.loads((made.path / "manifest.json").read_text())
    assert manifest["config"]["text"] == "a" and manifest["metrics"] == {"text": "a"}
    assert manifest["files"]["text"]["bytes"] == 2 and len(manifest["files"]["text"]["sha256"]) == 64
    assert manifest["inputs"]["up"].startswith(str(tmp_path)) and manifest["peak_memory_gb"] > 0
    assert manifest["versions"]["torch"] and 0 < manifest["seconds"] <= time.time() - before


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


def test_failure_to_remake_keeps_what_was_there(tmp_path):
    config = TraceConfig(text="abc")
    path = Runner(tmp_path).run(node(config)).path
    (path / "extra").write_text("still here")
    (path / "text").write_text("harmed")
    with pytest.raises(TypeError, match="no_such_argument"):
        Runner(tmp_path).run(Node(TRACE, "one", config, {}, {"no_such_argument": 1}))
    assert (path / "extra").read_text() == "still here"


def test_a_killed_stage_leaves_nothing_final_and_is_made_by_the_next(tmp_path):
    config = TraceConfig(text="x")
    assert joined(in_child(tmp_path, config, die=True)) == [-9]
    same = node(config)
    (left,) = (tmp_path / "trace" / ".partial").glob(f"{same.path(tmp_path).name}.*")
    assert not same.path(tmp_path).exists() and (left / "text").exists()
    (left / "half").write_text("of the killed attempt")
    made = Runner(tmp_path).run(same)
    assert made.made and not left.exists()
    assert sorted(path.name for path in made.path.iterdir()) == ["manifest.json", "text"]


def test_processes_that_want_the_same_stage_make_it_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outputs, config = tmp_path / "outputs", TraceConfig(trace="trace", text="x")
    started, go, *waits = (FORK.Event() for _ in range(4))
    first = in_child(outputs, config, started=started, until=go)
    assert started.wait(PATIENCE)
    others = [in_child(outputs, config, one) for one in waits]
    assert all(one.wait(PATIENCE) for one in waits)
    go.set()
    assert joined(first, *others) == [0, 0, 0]
    assert Path("trace").read_text().split() == ["x"]


def test_a_process_takes_other_work_while_another_holds_a_stage(tmp_path):
    started, other = FORK.Event(), FORK.Event()
    held = in_child(tmp_path, TraceConfig(text="held"), started=started, until=other)
    assert started.wait(PATIENCE)
    # The holder finishes only once the other stage is at work: a process that merely waited would see it time out.
    nodes = [node(TraceConfig(text="held")), Node(TRACE, "other", TraceConfig(text="other"), {}, {"started": other})]
    made = Runner(tmp_path).run_all(nodes)
    assert joined(held) == [0]
    assert [one.made for one in made] == [False, True]
