"""The training order: every index once an epoch, batches of like length in random order, the same by seed."""

import random

from pipelines.training.order import LikeLengthSampler

LENGTHS = random.Random(0).choices(range(10, 200), k=1003)


def test_every_index_comes_once_an_epoch_and_epochs_differ():
    sampler = LikeLengthSampler(LENGTHS, 8, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(1003)) and len(sampler) == 1003
    assert first == list(LikeLengthSampler(LENGTHS, 8, seed=3))
    assert first != list(LikeLengthSampler(LENGTHS, 8, seed=4))
    sampler.set_epoch(1)
    assert sorted(sampler) == sorted(first) and list(sampler) != first


def test_batches_are_of_like_length_and_in_no_order_of_length():
    order = list(LikeLengthSampler(LENGTHS, 8, seed=0))
    batches = [[LENGTHS[index] for index in order[start : start + 8]] for start in range(0, 1000, 8)]
    assert sum(max(batch) - min(batch) for batch in batches) / len(batches) < 10
    longest = [max(batch) for batch in batches[:100]]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)
    assert abs(sum(longest[:50]) - sum(longest[50:])) / 50 < 40
