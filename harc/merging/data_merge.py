"""What the methods that run their sources on data work with: the sources, layer by layer, and the way to write.

They work on the model's own parameters (fused experts among them) and write them under their published names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from harc.checkpoint import Checkpoint
from harc.merging.methods.averaging.average import weighted_mean
from harc.models.store import Store

if TYPE_CHECKING:
    from harc.tokens import TokenSequence


@dataclass
class DataMerge:
    """One merge on data.

    Attributes:
        sources: the checkpoints to merge.
        data: one list of sequences per source.
        weights: one per source.
        dtype: what the sources are run in.
        device: where they are run.
        seed: for random draws.
        scratch: a folder for temporary files.
        write: takes a published name and its tensor.
        advance: takes the share of the work that is done.
        states_gb: memory for hidden states; those beyond go to mapped files.
        models: the sources, with embeddings, final norm and head loaded.
        store: where hidden states go.
    """

    sources: list[Checkpoint]
    data: "list[list[TokenSequence]]"
    weights: list[float]
    dtype: torch.dtype
    device: torch.device
    seed: int
    scratch: Path
    write: Callable[[str, Tensor], None]
    advance: Callable[[float], None]
    states_gb: float | None = None

    def __post_init__(self) -> None:
        # Not above: it takes transformers along, seconds that listing the methods need not wait for.
        from harc.models.streaming import LayerStream

        self.models: list[LayerStream] = [
            LayerStream(source, dtype=self.dtype, device=self.device) for source in self.sources
        ]
        self.store = Store(self.states_gb, self.scratch)
        for model in self.models:
            model.load_outer()

    def kept(self, states: Float[Tensor, "batch length hidden"]) -> Float[Tensor, "batch length hidden"]:
        """Hidden states in the store, on the host."""
        place = self.store.empty(states.shape[0] * states.shape[1], states.shape[2], states.dtype)
        return place.view(states.shape).copy_(states)

    def write_layer(self, tensors: dict[str, Tensor]) -> None:
        """Writes parameters under their published names."""
        for name, tensor in self.models[0].parameters.published(tensors).items():
            self.write(name, tensor)

    def write_unused(self) -> None:
        """Writes the mean of tensors that the model class makes no use of."""
        for name in self.models[0].parameters.unused:
            self.write(name, weighted_mean([source.read(name).float() for source in self.sources], self.weights))
