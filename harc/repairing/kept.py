"""The tensors of all repaired layers by published name, read from the folder of finished layers when asked for.

A repaired model is as large as the merged one: no more than a layer of it is in memory.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor

from harc.calibration.resume import Progress
from harc.checkpoint import CheckpointError
from harc.models.streaming import LayerStream


class KeptTensors(Mapping[str, Tensor]):
    """A mapping over finished layers; names: the published names of each layer's tensors, by layer."""

    def __init__(self, stream: LayerStream, kept: Progress, names: Mapping[int, list[str]]) -> None:
        self._stream, self._kept = stream, kept
        self._layers = {name: layer for layer, own in names.items() for name in own}
        self._loaded: tuple[int, dict[str, Tensor]] = (-1, {})

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, name: str) -> Tensor:
        layer = self._layers[name]
        if self._loaded[0] != layer:
            self._loaded = (-1, {})
            found = self._kept.load(layer)
            if found is None:
                raise CheckpointError(f"layer {layer}: its repaired tensors are gone; run the repair again")
            self._loaded = (layer, self._stream.parameters.published(found[0]))
        return self._loaded[1][name]
