"""Training order: batches of sequences of like length, in random order, so that little of a step is padding.

transformers' own group_by_length walks every fifty batches from the longest sequences to the shortest. In the tiny
world length tells what kind of problem it is, and the model would be trained on one kind after the other.
"""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class LikeLengthSampler(Sampler[int]):
    """Indices in the order of training; every `batch_size` of them are of like length.

    lengths: tokens of each sequence.
    batch_size: sequences a step, over all processes.
    seed: of the order; every epoch has its own.
    group: batches that are sorted by length together, a balance between little padding and random batches.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, group: int = 50):
        self.lengths = torch.tensor(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.group = group
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        batches: list[torch.Tensor] = []
        for part in torch.randperm(len(self.lengths), generator=generator).split(self.group * self.batch_size):
            ordered = part[self.lengths[part].argsort(stable=True)]
            batches += ordered.split(self.batch_size)
        full = [batch for batch in batches if len(batch) == self.batch_size]
        rest = [batch for batch in batches if len(batch) < self.batch_size]  # last, or it would shift every batch after
        order = torch.randperm(len(full), generator=generator).tolist()
        for batch in [full[position] for position in order] + rest:
            yield from batch.tolist()
