"""The linear maps of a decoder layer outside its MoE block: attention's, and a dense layer's MLP."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from torch import Tensor, nn

from harc.models.hidden_states import HiddenStates, returning_zeros
from harc.models.streaming import LayerStream
from harc.repairing.maps import call_order, linear_maps
from harc.repairing.observed import Domain, Observed, compare

_TRIED = 256  # tokens by which a block's maps are found, about


class BlockMaps:
    """The maps outside the MoE block of one layer that every domain's models have loaded.

    Attributes: maps: by path in the layer; groups: names of those with the same inputs, in the order in which they run.
    """

    def __init__(self, layer: int, domains: Sequence[Domain], wanted: Callable[[bool], bool]) -> None:
        """Finds them. wanted: whether maps of attention (True) or outside it (False) are to be repaired."""
        self.layer, self.domains = layer, domains
        self._attention = self._find_attention()
        self.maps = self._of(domains[0].merged.stream)
        groups = call_order(self.maps, self._try)
        self.groups = [group for group in groups if wanted(self.in_attention(group[0]))]
        self._writers = self._find_writers(groups)

    def in_attention(self, name: str) -> bool:
        """Whether a map belongs to a child of the layer that is called with an attention mask."""
        return name.split(".")[0] in self._attention

    def observed(self, group: Sequence[str], drift: float) -> Iterator[Observed]:
        """What a group meets, batch by batch; drift: the share of the residual stream's distance to be made good."""
        writes = len(group) == 1 and group[0] in self._writers and drift > 0
        before = self._writers[: self._writers.index(group[0])] if writes else []
        for domain in self.domains:
            for batch in domain.merged.batches:
                rows, _, mask = batch
                real = mask.bool()
                states = (domain.merged, domain.source)
                hidden = [state.padded(batch).to(state.stream.device) for state in states]
                sides = [
                    (self._chosen(state.stream, [*group, *before]), self._running(state.stream, padded, mask))
                    for state, padded in zip(states, hidden, strict=True)
                ]
                met = compare(
                    sides,
                    lambda value: value.reshape(*real.shape, -1)[real],  # noqa: B023
                    domain.weight(rows),
                    domain.held(rows),
                )
                if writes:
                    lacking = (hidden[1] - hidden[0])[real] + sum(met.source[one] - met.merged[one] for one in before)
                    met = replace(met, lacking=drift * lacking)
                yield met

    def _chosen(self, stream: LayerStream, names: Sequence[str]) -> dict[str, nn.Linear]:
        maps = self._of(stream)
        return {name: maps[name] for name in names}

    def _running(self, stream: LayerStream, padded: Tensor, mask: Tensor) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with self._without_moe(stream):
                return stream.run(self.layer, padded, mask.to(padded.device))

        return run

    def _find_writers(self, groups: Sequence[Sequence[str]]) -> list[str]:
        """The maps whose outputs the layer adds to its input, in order: the last of attention and of the MLP."""
        last = {self.in_attention(group[0]): group for group in groups}
        found = [group[0] for group in groups if group in last.values() and len(group) == 1]
        outputs: dict[str, Tensor] = {}

        def note(name: str) -> Callable[..., None]:
            return lambda _, __, output: outputs.update({name: output})

        taps = [self.maps[name].register_forward_hook(note(name)) for name in found]
        try:
            hidden, out, real = self._try()
        finally:
            for tap in taps:
                tap.remove()
        if any(output.shape != hidden.shape for output in outputs.values()):
            return []
        written = hidden + sum(outputs.values())
        difference = (written - out)[real].float().norm() / out[real].float().norm()
        return found if difference < (1e-5 if out.dtype.itemsize >= 4 else 2e-2) else []

    def _of(self, stream: LayerStream) -> dict[str, nn.Linear]:
        moe = (stream.moe(self.layer),) if self.layer in stream.routers else ()
        return linear_maps(stream.blocks[self.layer], moe)

    def _find_attention(self) -> set[str]:
        found: set[str] = set()
        block = self.domains[0].merged.stream.blocks[self.layer]

        def note(name: str) -> Callable[..., None]:
            return lambda _, __, kwargs: found.add(name) if "attention_mask" in kwargs else None

        children = block.named_children()
        taps = [child.register_forward_pre_hook(note(name), with_kwargs=True) for name, child in children]
        try:
            self._try()
        finally:
            for tap in taps:
                tap.remove()
        return found

    def _try(self) -> tuple[Tensor, Tensor, Tensor]:
        """Runs the merged layer on a few tokens: its input, its output without the MoE's, and which are no padding."""
        state: HiddenStates = self.domains[0].merged
        rows, ids, mask = state.batches[0]
        few = max(1, _TRIED // mask.shape[1])
        mask = mask[:few]
        padded = state.padded((rows[: int(mask.sum())], ids[:few], mask)).to(state.stream.device)
        return padded, self._running(state.stream, padded, mask)(), mask.bool()

    def _without_moe(self, stream: LayerStream) -> contextlib.AbstractContextManager[None]:
        if self.layer in stream.routers:
            return returning_zeros(stream.moe(self.layer), [], self.domains[0].merged.stream.form(self.layer) or 1)
        return contextlib.nullcontext()
