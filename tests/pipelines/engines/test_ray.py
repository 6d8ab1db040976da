"""engine=ray on a real Ray of this machine: the same records as engine=local, deaths confined to their stage."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.config.engine import RayEngineConfig
from pipelines.graph.make import Making, make
from pipelines.runner.resources import Resources
from tests.pipelines.engines.small_cells import (
    ROWS,
    STATUS,
    cells,
    comparable,
    killing,
    make_folder,
    status,
    working_in,
)

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'harc[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.cluster]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cells")
    make_folder(folder)
    return folder


@pytest.fixture(scope="module")
def made(folder) -> Making:
    """The rows of test_local, and one whose merge is killed from outside in its middle."""
    rows = [[*row, "engine=ray", "engine.cores=2"] for row in [*ROWS, ["merge=waits", "merge.trace=waiting"]]]
    with working_in(folder), killing(folder / "waiting"):
        yield make(cells(folder, folder / "ray", *rows), folder / "ray-work")


def test_a_process_that_dies_costs_its_stage_alone(made, folder):
    assert status(made) == STATUS | {"merge tiny-waits": "made", "diagnose tiny-waits": "made"}
    assert (folder / "waiting").exists() and (folder / "once").exists()
    died = made.record(2).error
    assert "merge tiny-dies: its process died (WorkerCrashedError), 2 times" in died


def test_a_stage_that_fails_says_what_it_printed(made):
    broken = made.record(3).error
    assert broken.startswith("diagnose tiny-ties: ") and "no_records.jsonl" in broken
    assert "Traceback" in Path(broken.rpartition("what it printed: ")[2].rstrip(")")).read_text()


def test_a_row_has_the_record_that_engine_local_gives_it(made, folder):
    alone = make(cells(folder, folder / "local", *ROWS[:2]), folder / "local-work")
    for row in (0, 1):
        assert comparable(made.record(row)) == comparable(alone.record(row))


def test_a_cluster_that_runs_is_used_and_left_running(folder):
    with working_in(folder):
        command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--num-cpus=2", "--num-gpus=0",
                   "--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=100000000"]  # fmt: skip
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
            rows = [[*ROWS[0], "engine=ray", "engine.address=auto"]]
            made = make(cells(folder, folder / "auto", *rows), folder / "auto-work")
            assert status(made) == {"merge tiny-average": "made", "diagnose tiny-average": "made"}
            ray.init(address="auto", logging_level="ERROR")
            assert ray.cluster_resources()["CPU"] == 2
        finally:
            ray.shutdown()
            subprocess.run([command[0], "stop", "--force"], check=True, capture_output=True)


def test_the_nodes_of_a_cluster_are_planned_as_so_many_alike():
    from pipelines.engines.ray.engine import machine_of

    head = {"CPU": 8.0, "memory": 30e9}
    nodes = [{"CPU": 64.0, "GPU": 8.0, "memory": memory} for memory in (900e9, 1000e9)]
    assert machine_of([head, head], RayEngineConfig()) == Resources(8, 0, 30.0, nodes=2)
    found = machine_of([head, *nodes], RayEngineConfig(gpu_memory_gb=80))
    assert found == Resources(64, 8, 900.0, 80, nodes=2) and found.words == "2 × (64 cores, 8 GPUs)"
    with pytest.raises(ValueError, match="gpu_memory_gb is not set"):
        machine_of(nodes, RayEngineConfig())
