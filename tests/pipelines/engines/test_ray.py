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
    assert_as_by_engine_local,
    assert_death_is_confined,
    assert_failure_is_told,
    cells,
    killing,
    make_folder,
    more_rows,
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
    """The rows of test_local, one whose merge is killed from outside in its middle, and one with HARC."""
    rows = [[*row, "engine=ray", "engine.cores=2"] for row in [*ROWS, *more_rows(folder)]]
    with working_in(folder), killing(folder / "waiting"):
        yield make(cells(folder, folder / "ray", *rows), folder / "ray-work")


def test_a_process_that_dies_costs_its_stage_alone(made, folder):
    assert_death_is_confined(made, folder, "merge tiny-dies: its process died (WorkerCrashedError), 2 times")


def test_a_stage_that_fails_says_what_it_printed(made):
    assert_failure_is_told(made)


def test_a_row_has_the_record_that_engine_local_gives_it(made, folder):
    assert_as_by_engine_local(made, folder)


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
