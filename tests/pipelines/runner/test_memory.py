"""Peak memory: what is allocated is seen, what is freed before the end too, and a fork is not counted twice."""

import os

import numpy as np

from pipelines.runner.memory import PeakMemory


def test_the_peak_counts_what_was_freed_again():
    with PeakMemory() as before:
        pass
    with PeakMemory() as memory:
        block = np.ones(50_000_000)  # 0.4 GB
        memory.sample()
        del block
    assert 0.35 < memory.peak_gb - before.peak_gb < 0.6


def test_a_forked_child_counts_only_what_it_has_to_itself():
    block = np.ones(50_000_000)
    with PeakMemory() as alone:
        pass
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)  # until the parent closes its end
        os._exit(0)
    with PeakMemory() as forked:
        forked.sample()
    os.close(writer)
    os.waitpid(child, 0)
    assert forked.peak_gb - alone.peak_gb < 0.2, block.shape
