"""How far one routing is from another: routing KL, mismatched decisions, overlap of the chosen experts, relative logit
shift (METHOD section 9).

All work on router logits of the same tokens and give one value a token; a layer's figure is the mean over its tokens.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from harc.models.routers import Activation
from harc.solver.operator import Reduce, block_tokens, token_blocks


def routing_kl(
    source: Float[Tensor, "tokens experts"], merged: Float[Tensor, "tokens experts"], activation: Activation = "softmax"
) -> Float[Tensor, "tokens"]:
    """KL(p_source ‖ p_merged) in nats from router logits; for sigmoid routers summed over independent experts."""
    source, merged = _wide(source), _wide(merged)
    if activation == "softmax":
        log_p, log_q = source.log_softmax(-1), merged.log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)
    p = source.sigmoid()
    on = p * (F.logsigmoid(source) - F.logsigmoid(merged))
    off = (1 - p) * (F.logsigmoid(-source) - F.logsigmoid(-merged))
    return (on + off).sum(-1).clamp(min=0)


def mismatch(
    source: Float[Tensor, "tokens experts"], merged: Float[Tensor, "tokens experts"], top_k: int
) -> Bool[Tensor, "tokens"]:
    """Whether the sets of the `top_k` largest logits differ at all.

    Raises:
        ValueError: `top_k` is not between 1 and the number of experts.
    """
    if not 1 <= top_k <= source.shape[-1]:
        raise ValueError(f"top_k is {top_k}, with {source.shape[-1]} experts")
    return differ(source.topk(top_k, dim=-1).indices, merged.topk(top_k, dim=-1).indices)


def differ(source: Tensor, merged: Tensor) -> Bool[Tensor, "tokens"]:
    """Whether two (tokens, top_k) choices of experts differ as sets."""
    return (source.sort(dim=-1).values != merged.sort(dim=-1).values).any(-1)


def overlap(source: Int64[Tensor, "tokens top_k"], merged: Int64[Tensor, "tokens top_k"]) -> Float[Tensor, "tokens"]:
    """Share |A ∩ B| / k of the experts chosen by one that the other chose too."""
    return (source[:, :, None] == merged[:, None, :]).sum((1, 2)).double() / source.shape[1]


def logit_shift(
    source: Float[Tensor, "tokens experts"], merged: Float[Tensor, "tokens experts"]
) -> Float[Tensor, "tokens"]:
    """The relative logit shift ‖z_merged − z_source‖ / ‖z_source‖."""
    source, merged = _wide(source), _wide(merged)
    return (merged - source).norm(dim=-1) / source.norm(dim=-1).clamp(min=torch.finfo(source.dtype).tiny)


def kl_on_features(
    features: Float[Tensor, "tokens hidden"],
    source: Float[Tensor, "experts hidden"],
    merged: Float[Tensor, "experts hidden"],
    activation: Activation = "softmax",
    reduce: Reduce | None = None,
) -> float:
    """The mean routing KL of two router weights on the same inputs, a block of tokens at a time; NaN without tokens."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    source, merged = source.to(features.device, dtype), merged.to(features.device, dtype)
    values = (routing_kl(x @ source.T, x @ merged.T, activation) for x in token_blocks(features, dtype))
    return _mean(values, len(features), reduce)


def kl_to_targets(
    features: Float[Tensor, "tokens hidden"],
    targets: Float[Tensor, "tokens experts"],
    merged: Float[Tensor, "experts hidden"],
    activation: Activation = "softmax",
    reduce: Reduce | None = None,
) -> float:
    """The mean routing KL of a router weight from target logits, a block of tokens at a time; NaN without tokens."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    merged = merged.to(features.device, dtype)
    asked = targets.split(block_tokens(features.shape[1], dtype, features.device))
    blocks = zip(asked, token_blocks(features, dtype), strict=True)
    values = (routing_kl(z.to(features.device, dtype), x @ merged.T, activation) for z, x in blocks)
    return _mean(values, len(features), reduce)


def _mean(blocks: Iterable[Tensor], tokens: int, reduce: Reduce | None) -> float:
    sums = torch.tensor([0.0, float(tokens)], dtype=torch.float64)
    for values in blocks:
        sums[0] += float(values.double().sum())
    total, count = (reduce(sums) if reduce else sums).tolist()
    return total / count if count else float("nan")


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
