"""Claims: one owner at a time among real processes, those that are killed, stopped or elsewhere included."""

import multiprocessing
import os
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from pipelines.runner import claims
from pipelines.runner.claims import Claims, Pace, start_of
from pipelines.runner.make import Runner
from pipelines.runner.stage import Node, Stage
from tests.pipelines.runner.stages_at_work import PATIENCE, TRACE, TraceConfig, node, trace

FORK = multiprocessing.get_context("fork")
QUICK = Pace(beat=0.02, stale=60.0, look=0.02)


class Clock:
    """Seconds as a test says."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def elsewhere(monkeypatch) -> None:
    """From now on this process, and those it forks, are on another machine than those before."""
    monkeypatch.setattr(claims, "this_host", lambda: "elsewhere")


def holder(folder: Path) -> BaseProcess:
    """A process that claims `one`, and holds it until it is killed."""
    claimed = FORK.Event()

    def run() -> None:
        with Claims(folder, QUICK).claimed("one"):
            claimed.set()
            while True:
                signal.pause()

    child = FORK.Process(target=run)
    child.start()
    assert claimed.wait(PATIENCE)
    return child


def kill(child: BaseProcess) -> None:
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join(PATIENCE)


def beat_of(folder: Path) -> str:
    (path,) = folder.glob("one/*/beat")
    return path.read_text()


def test_a_claim_is_refused_while_its_owner_lives_and_free_when_it_ends(tmp_path):
    first, second = Claims(tmp_path), Claims(tmp_path)
    with first.claimed("one", wait=False) as held:
        assert held is not None and held.held
        assert second.try_claim("one") is None and second.try_claim("two") is not None
    with second.claimed("one", wait=False) as again:
        assert again is not None and again.held and not held.held
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["2"], "what is over is tidied away"


def test_a_killed_owner_of_this_machine_is_succeeded_at_once(tmp_path, caplog):
    child = holder(tmp_path)
    onlooker = Claims(tmp_path, QUICK)
    assert onlooker.try_claim("one") is None
    kill(child)
    claim = onlooker.try_claim("one")
    assert claim is not None and claim.held and f"process {child.pid} of" in caplog.text
    claim.end()


def test_an_exit_status_that_nobody_has_fetched_is_no_live_process(tmp_path):
    child = holder(tmp_path)
    assert child.pid is not None and start_of(child.pid) is not None
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the process table
    assert start_of(child.pid) is None and Claims(tmp_path).try_claim("one") is not None


def test_a_process_that_got_a_dead_owners_number_does_not_hold_its_claim(tmp_path, monkeypatch):
    claim = Claims(tmp_path).try_claim("one")
    assert claim is not None
    monkeypatch.setattr(claims, "start_of", lambda pid: "later")
    assert Claims(tmp_path).try_claim("one") is not None and not claim.held


def test_an_owner_elsewhere_is_dead_when_its_beat_stands_still_not_before(tmp_path, monkeypatch):
    child = holder(tmp_path)
    elsewhere(monkeypatch)
    clock = Clock()
    onlooker = Claims(tmp_path, QUICK, clock)
    before = beat_of(tmp_path)
    assert onlooker.try_claim("one") is None
    while beat_of(tmp_path) == before:
        assert child.is_alive()
    clock.now += 10 * QUICK.stale
    assert onlooker.try_claim("one") is None, "it has beaten since the last look, long ago as that may be"
    kill(child)
    assert onlooker.try_claim("one") is None  # sees the last beat
    clock.now += 0.9 * QUICK.stale
    assert onlooker.try_claim("one") is None
    clock.now += 0.2 * QUICK.stale
    claim = onlooker.try_claim("one")
    assert claim is not None
    claim.end()


def test_of_many_that_want_one_claim_some_of_which_die_in_it_one_holds_it_at_a_time(tmp_path):
    kill(holder(tmp_path))
    count = tmp_path / "count"
    count.write_text("0")

    def run(dies: bool) -> None:
        mine = Claims(tmp_path, QUICK)
        for _ in range(10):
            with mine.claimed("one"):
                count.write_text(str(int(count.read_text()) + 1))
                if dies:
                    os.kill(os.getpid(), signal.SIGKILL)

    children = [FORK.Process(target=run, args=[dies]) for dies in (False, True, True, False, True, False)]
    for one in children:
        one.start()
    for one in children:
        one.join(PATIENCE)
    assert [one.exitcode for one in children] == [0, -9, -9, 0, -9, 0] and count.read_text() == "33"


def test_a_folder_that_cannot_be_written_is_said_so(tmp_path):
    (tmp_path / "one").write_text("a file in the folder's place")
    with pytest.raises(FileExistsError, match="one"):
        Claims(tmp_path).try_claim("one")


def test_a_stage_that_resumes_goes_on_from_what_a_killed_owner_left(tmp_path):
    resuming = Stage("trace", TraceConfig, trace, TRACE.estimate, resumable=True)
    config = TraceConfig(text="x")
    child = FORK.Process(target=lambda: Runner(tmp_path).run(Node(resuming, "one", config, {}, {"die": True})))
    child.start()
    child.join(PATIENCE)
    assert child.exitcode == -9
    (left,) = (tmp_path / "trace" / ".partial").iterdir()
    (left / "half").write_text("of the killed attempt")
    made = Runner(tmp_path).run(node(config, spec=resuming))
    assert (made.path / "half").read_text() == "of the killed attempt"
    assert not list((tmp_path / "trace" / ".partial").iterdir())


def test_an_owner_that_was_stopped_and_taken_for_dead_reads_what_its_successor_made(tmp_path, monkeypatch):
    """As a machine that sleeps: it wakes in the middle of a stage that another one has made meanwhile."""
    monkeypatch.chdir(tmp_path)
    outputs, config = tmp_path / "outputs", TraceConfig(trace="trace", text="x")
    started, go, read = FORK.Event(), FORK.Event(), FORK.Event()

    def run() -> None:
        made = Runner(outputs, QUICK).run(Node(TRACE, "one", config, {}, {"started": started, "until": go}))
        if not made.made:
            read.set()

    child = FORK.Process(target=run)
    child.start()
    assert child.pid is not None and started.wait(PATIENCE)
    os.kill(child.pid, signal.SIGSTOP)
    elsewhere(monkeypatch)
    runner = Runner(outputs, Pace(beat=0.02, stale=0.2, look=0.02))
    made = runner.run(node(config))
    os.kill(child.pid, signal.SIGCONT)
    go.set()
    child.join(PATIENCE)
    assert child.exitcode == 0 and read.is_set() and made.made
    assert Path("trace").read_text().split() == ["x", "x"]
    assert not list((outputs / "trace" / ".partial").iterdir())
