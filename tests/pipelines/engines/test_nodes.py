"""A training on two nodes, of a real Ray and a real SLURM that divide this machine, is that of one process."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipelines.graph.make import Making, make
from tests.harc.merging.merge_models import load_state
from tests.pipelines.engines import slurm_here
from tests.pipelines.engines.small_cells import cells, make_folder, tuned, working_in

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
LAUNCH = ["launch.processes=2", "launch.nodes=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cells")
    make_folder(folder)
    with working_in(folder):
        yield folder


@pytest.fixture(scope="module")
def alone(folder) -> Making:
    return make(cells(folder, folder / "local", tuned(folder)), folder / "local-work")


def tuned_source(made: Making) -> dict[str, torch.Tensor]:
    assert made.error(0) is None
    return load_state(Path(next(one.path for one in made.record(0).stages if one.stage == "finetune")))


def same_training(made: Making, alone: Making) -> None:
    (finetune,) = [task for task in made.graph.tasks.values() if task.stage == "finetune"]
    assert finetune.resources.nodes == 2 and list(made.graph.tasks) == list(alone.graph.tasks)
    mine, theirs = tuned_source(made), tuned_source(alone)
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-3, atol=1e-5)


@contextlib.contextmanager
def two_ray_nodes() -> Iterator[str]:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'harc[ray]'")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_on_two_nodes_of_ray(folder, alone):
    with two_ray_nodes() as address:
        row = tuned(folder, "engine=ray", f"engine.address={address}", *LAUNCH)
        same_training(make(cells(folder, folder / "ray", row), folder / "ray-work"), alone)


@pytest.mark.skipif(slurm_here.reason() is not None, reason=f"no SLURM here: {slurm_here.reason()}")
def test_on_two_nodes_of_slurm(folder, alone, tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'harc[slurm]'")
    with slurm_here.slurm(tmp_path, nodes=2):
        engine = ["engine=slurm", "engine.look_seconds=0.5", "engine.memory_margin_gb=1"]
        row = tuned(folder, *engine, *LAUNCH)
        same_training(make(cells(folder, folder / "slurm", row), folder / "slurm-work"), alone)


def test_one_machine_has_no_place_for_two_nodes(folder):
    made = make(cells(folder, folder / "none", tuned(folder, *LAUNCH)), folder / "none-work")
    assert "spans 2 nodes; here is 1" in str(made.error(0)) and not made.results
