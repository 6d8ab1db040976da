"""Router-only training: the sources' routing recorded, and a trainer whose loss has the forward KL from it.

Recorded are router logits, of every token and layer, while a source reads its own domain's text. The KL is their mean
over layers and tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from harc.measures import routing_kl
from harc.models.routers import Router, find_routers
from pipelines.data.tokens import IGNORED, tokenize
from pipelines.stages.inputs import chosen_records, sources_of
from pipelines.stages.router_sft import RouterSftStageConfig
from pipelines.training.loop import RouterTrainer

_INDEX = "recorded"  # the column that says which record an example is
_TENSOR = "logits"


@dataclass(frozen=True)
class Recorded:
    """The router logits of one example: rows `start` to `start + length` of a file's (tokens, layers, experts)."""

    file: Path
    start: int
    length: int

    def read(self) -> Float[Tensor, "tokens layers experts"]:
        """Reads its rows alone."""
        with safe_open(self.file, "pt") as file:
            return file.get_slice(_TENSOR)[self.start : self.start + self.length]


def examples_of(
    config: RouterSftStageConfig, inputs: dict[str, Path], tokenizer: PreTrainedTokenizerBase, work: Path
) -> tuple[Dataset, list[Recorded]]:
    """The domains' calibration records as examples, and what each domain's source routed on them.

    Args:
        config: of the stage.
        inputs: `data_<domain>`, and `source_<domain>` where a stage made it.
        tokenizer: the merged model's.
        work: folder that logits are kept in; those that an attempt of before left are taken.

    Raises:
        ValueError: records without responses; a source of another architecture.
    """
    parts, recorded = [], []
    for name, source in sources_of(config.sources, inputs).items():
        records = chosen_records(inputs[f"data_{name}"], name, config.fraction, config.seed)
        examples = tokenize(tokenizer, records, max_length=config.train.max_length)
        file = work / f"routing-{name}.safetensors"
        if not file.exists():
            _record(str(source), examples["input_ids"], file, name)
        start = 0
        for ids in examples["input_ids"]:
            recorded.append(Recorded(file, start, len(ids)))
            start += len(ids)
        parts.append(examples)
    whole = concatenate_datasets(parts)
    return whole.add_column(_INDEX, list(range(len(whole)))), recorded


@torch.no_grad()
def _record(source: str, examples: Sequence[Sequence[int]], file: Path, name: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(
        source, dtype="auto", use_safetensors=True, trust_remote_code=False
    )
    model.to(device).eval()
    routers = find_routers(model)
    rows = []
    for ids in tqdm(examples, desc=f"recording {name}", unit="text", leave=False):
        with router_logits(routers) as logits:
            model(input_ids=torch.tensor([ids], device=device), use_cache=False)
        rows.append(torch.stack([logits[layer] for layer in routers], dim=1).float().cpu())
    beside = file.with_suffix(".part")
    save_file({_TENSOR: torch.cat(rows)}, beside)
    beside.replace(file)


@contextmanager
def router_logits(routers: dict[int, Router]) -> Iterator[dict[int, Float[Tensor, "tokens experts"]]]:
    """Within it, forward passes leave each layer's router logits W x (+ b) in what is yielded, gradients and all."""
    found: dict[int, Tensor] = {}

    def noting(layer: int, router: Router) -> Any:
        def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0].reshape(-1, router.weight.shape[1])
            found[layer] = F.linear(x.to(router.weight.dtype), router.weight, router.bias)

        return note

    handles = [router.module.register_forward_pre_hook(noting(layer, router)) for layer, router in routers.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def freeze_all_but_routers(model: PreTrainedModel) -> dict[int, Router]:
    """The model's routers, which alone can be trained then."""
    routers = find_routers(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for router in routers.values():
        router.weight.requires_grad_(True)
        if router.bias is not None:
            router.bias.requires_grad_(True)
    return routers


class RecordedRoutingTrainer(RouterTrainer):
    """The trainer whose loss is language modelling and the forward KL from recorded routing."""

    _signature_columns: Any

    def __init__(self, *args: Any, stage: RouterSftStageConfig, recorded: Sequence[Recorded], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._weights, self._recorded = stage.loss, recorded
        whole: Any = self.model
        self._routers = freeze_all_but_routers(whole)
        collate: Any = self.data_collator

        def with_index(rows: list[dict[str, Any]]) -> dict[str, Any]:
            index = [row[_INDEX] for row in rows]
            batch = collate([{key: value for key, value in row.items() if key != _INDEX} for row in rows])
            return {**batch, _INDEX: torch.tensor(index)}

        self.data_collator = with_index

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if _INDEX not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, _INDEX]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The weighted sum of both losses of one micro-batch, as its share of the step."""
        index, labels = inputs.pop(_INDEX).tolist(), inputs.pop("labels")
        with router_logits(self._routers) as logits:
            outputs = model(**inputs, use_cache=False)
        mask = inputs["attention_mask"].bool().flatten()
        sources = torch.cat([self._recorded[one].read() for one in index]).to(labels.device)
        kls = [
            routing_kl(sources[:, position], logits[layer][mask], self._routers[layer].activation).mean()
            for position, layer in enumerate(self._routers)
        ]
        kl = torch.stack(kls).mean() / self.current_gradient_accumulation_steps
        predicted, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        summed = F.cross_entropy(predicted.float(), targets, ignore_index=IGNORED, reduction="sum")
        assert num_items_in_batch is not None  # the Trainer counts a step's labels
        return self._weights.lm_weight * summed / num_items_in_batch + self._weights.kl_weight * kl
