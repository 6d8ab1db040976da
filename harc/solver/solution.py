"""What solving or fitting one router gives."""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor


@dataclass
class RouterSolution:
    """A solved router.

    weight: float32 (float64 if the features are).
    iterations: of conjugate gradients (and, for the exact objective, of its Newton steps).
    residual: the true ‖b − Λ̃ W‖ / ‖b‖.
    converged: whether `residual` reached the tolerance.
    residuals: one per iteration, from the start, as conjugate gradients see it; true at the end of every round.
    reason: why the solve ended.
    preconditioner: the one in use; "X, then diagonal" where X failed.
    seconds: wall time in all.
    setup_seconds: of `seconds`, statistics and preconditioner.
    alpha: the α in use; None with β.
    kept: whether the start was kept, being better on held-out tokens (harc.solver.fit).
    held_out_kl: held-out routing KL in nats, by α (or "fitted", with β) and of the `start` (harc.solver.fit).
    kl_steps: routing KL in nats after each Newton step (harc.solver.fit).
    """

    weight: Float[Tensor, "experts hidden"]
    iterations: int
    residual: float
    converged: bool
    residuals: list[float] = field(default_factory=list)
    reason: str = "converged"
    preconditioner: str = "none"
    seconds: float = 0.0
    setup_seconds: float = 0.0
    alpha: float | None = None
    kept: bool = False
    held_out_kl: dict[str, float] = field(default_factory=dict)
    kl_steps: list[float] = field(default_factory=list)
