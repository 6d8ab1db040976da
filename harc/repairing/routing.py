"""Which tokens a source routes to each of its experts, and how it weights them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from harc.repairing.maps import experts_module, muted

_ROWS = 4096


@dataclass(frozen=True)
class Routing:
    """Routing of all tokens by expert.

    order: positions in (tokens · top_k) sorted by expert; starts: where each expert's begin; weights: (tokens, top_k).
    """

    order: Int64[Tensor, "decisions"]
    starts: Int64[Tensor, "experts"]
    weights: Float[Tensor, "tokens k"]

    def of(self, expert: int) -> Iterator[tuple[Int64[Tensor, "n"], Float[Tensor, "n"], Float[Tensor, "n"]]]:
        """Yields blocks of an expert's tokens: positions, weights, and the sum of each token's weights over experts."""
        top_k = self.weights.shape[1]
        own = self.order[int(self.starts[expert]) : int(self.starts[expert + 1])]
        for start in range(0, len(own), _ROWS):
            places = own[start : start + _ROWS]
            tokens = places // top_k
            yield tokens, self.weights[tokens, places % top_k], self.weights[tokens].sum(1)


def read_routing(moe: nn.Module, x: Float[Tensor, "tokens hidden"], device: torch.device) -> Routing:
    """Runs a loaded MoE block on its inputs, without its experts, and notes what they would have been called with.

    Raises:
        ValueError: experts that are not called with the block's inputs, the chosen experts and their weights.
    """
    experts = experts_module(moe)
    assert experts is not None
    chosen, weights = [], []
    for part in x.split(_ROWS):
        part = part.to(device)
        with muted(experts) as calls:
            moe(part[None])
        if len(calls) != 1 or not torch.equal(calls[0][0].reshape(-1), part.reshape(-1)):
            raise ValueError(
                f"{type(moe).__name__}: its experts are not called with the block's inputs; "
                "leave `experts` out of parts"
            )
        picked, shares = (one.reshape(len(part), -1) for one in calls[0][1:])
        chosen.append(picked.cpu())
        weights.append((shares if shares.shape == picked.shape else shares.gather(1, picked)).cpu())
    picks = torch.cat(chosen)
    count = len(experts.get_parameter("down_proj"))
    flat, order = picks.reshape(-1).sort(stable=True)
    return Routing(order, torch.searchsorted(flat, torch.arange(count + 1)), torch.cat(weights))
