"""Calibration over 1, 2 and 3 processes gives the same routers, to rounding."""

import subprocess
import sys

import pytest

import harc
from harc.checkpoint import open_checkpoint
from tests.harc.tiny_models import family, text
from tests.places import ROOT

WORKER = """
import sys
import torch
sys.path.insert(0, {tests!r})
from tests.harc.tiny_models import text
import harc
torch.set_num_threads(1)
rank, size, folder, domain, target = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]
torch.distributed.init_process_group("gloo", init_method=f"file://{{folder}}/meet-{{size}}", rank=rank, world_size=size)
paths = [f"{{folder}}/{{name}}" for name in ("merged", "source0", "source1")]
data = [text(seed=0), text(count=domain, seed=1)]
out = f"{{folder}}/out-{{size}}"
harc.calibrate(paths[0], paths[1:], data, out=out, target=target, tol=1e-9, min_tokens=1, progress=False)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("target", ["merged_inputs", "source_inputs"])
@pytest.mark.parametrize("domain", [30, 2], ids=["many sequences", "fewer sequences than processes"])
def test_processes_agree(domain, target, tmp_path) -> None:
    paths = family("olmoe", tmp_path)
    data = [text(seed=0), text(count=domain, seed=1)]
    options = {"target": target, "tol": 1e-9, "min_tokens": 1, "progress": False}
    harc.calibrate(paths[0], paths[1:], data, out=tmp_path / "out-1", **options)
    worker = WORKER.format(tests=str(ROOT))
    for size in (2, 3):
        started = [
            subprocess.Popen([sys.executable, "-c", worker, str(rank), str(size), str(tmp_path), str(domain), target])
            for rank in range(size)
        ]
        assert [process.wait(timeout=300) for process in started] == [0] * size
    alone = open_checkpoint(tmp_path / "out-1")
    for size in (2, 3):
        together = open_checkpoint(tmp_path / f"out-{size}")
        for name in alone:
            a, b = alone.read(name), together.read(name)
            assert (a - b).norm() <= 1e-4 * a.norm()  # float32 forward passes of other batches
