"""The stages of the method itself: merge, calibrate, swap, diagnose. Each is a call of the harc library."""

import dataclasses
import json
import random
import statistics
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

import harc
from harc.tokens import TokenSequence, encode
from pipelines.config import CalibrateStageConfig, DiagnoseConfig, MergeStageConfig, SwapConfig
from pipelines.data import load_records
from pipelines.data.sampled import calibration_records


def merge(config: MergeStageConfig, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Merges the sources. inputs: `base`, `source_<domain>`, and `data_<domain>` for methods that read text."""
    sources = _sources(config.sources, inputs)
    data = None
    if any(name.startswith("data_") for name in inputs):
        data = _calibration_text(sources, inputs, config.max_length)
    settings = dict(config.settings)
    weights = settings.pop("weights", None)
    report = harc.merge(
        config.method,
        list(sources.values()),
        inputs.get("base") or config.base,
        out,
        weights=None if weights is None else _ordered(weights, list(sources)),
        data=None if data is None else list(data.values()),
        **settings,
    )
    return {"tensors": report.tensors, "seconds": report.seconds}


def calibrate(config: CalibrateStageConfig, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Calibrates the routers of `merged` to those of `source_<domain>` on the text of `data_<domain>`."""
    sources = _sources(config.sources, inputs)
    data = _calibration_text(sources, inputs, config.max_length, config.fraction, config.seed)
    settings = dataclasses.asdict(config.harc)
    del settings["method"]
    report = harc.calibrate(
        inputs["merged"],
        list(sources.values()),
        list(data.values()),
        out=out,
        dtype=getattr(torch, config.dtype),
        device=device(),
        resume=out.with_name(f"{out.name}.layers"),
        **settings,
    )
    return report.to_dict()


def swap(config: SwapConfig, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Writes `model` with the routers of `routers`, both made by a stage or named in the config."""
    changed = harc.swap_routers(model(inputs, "model", config.model), model(inputs, "routers", config.routers), out)
    return {"routers": changed}


def diagnose(config: DiagnoseConfig, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Routing KL, mismatch and logit shift of `model` against each source, a domain's own text each.

    The text is held-out text that calibration never saw, or that of `data_<domain>` where the config names none.
    """
    sources = _sources(config.sources, inputs)
    diagnosed = model(inputs, "model", config.model)
    if config.heldout:
        tokenizer = AutoTokenizer.from_pretrained(next(iter(sources.values())), trust_remote_code=False)
        text = {
            name: encode(tokenizer, load_records(config.heldout[name], inputs.get("world")), config.max_length)
            for name in sources
        }
    else:
        text = _calibration_text(sources, inputs, config.max_length)
    report = harc.diagnose(
        diagnosed, list(sources.values()), list(text.values()), dtype=getattr(torch, config.dtype), device=device()
    )
    routing = _by_domain(report.to_dict(), list(sources))
    routing |= {f"{measure}_mean": _mean(routing[measure]) for measure in ("kl", "mismatch", "shift")}
    (out / "routing.json").write_text(json.dumps(routing, indent=1))
    return routing


def _by_domain(report: dict[str, Any], domains: list[str]) -> dict[str, Any]:
    """The report with the domains' names in place of their numbers."""
    return {
        key: {domains[index]: value for index, value in values.items()} if isinstance(values, dict) else values
        for key, values in report.items()
    }


def _mean(by_domain: dict[str, list[float]]) -> float:
    """Over the layers of a domain, then over domains."""
    return statistics.fmean(statistics.fmean(layers) for layers in by_domain.values())


def device() -> str:
    """Where models run: the first GPU, if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _sources(ids: dict[str, str | None], inputs: dict[str, Path]) -> dict[str, Path | str]:
    """Domain -> its source model, made by a stage or named in the config, in the order of the domains."""
    return {name: model(inputs, f"source_{name}", given) for name, given in ids.items()}


def model(inputs: dict[str, Path], name: str, given: str | None) -> Path | str:
    """The model that a stage made, or else the one that the config names.

    Raises:
        ValueError: neither is there.
    """
    found = inputs.get(name) or given
    if found is None:
        raise ValueError(f"no model {name}: neither a stage made it nor does the config name it")
    return found


def _calibration_text(
    sources: dict[str, Path | str], inputs: dict[str, Path], max_length: int, fraction: float = 1.0, seed: int = 0
) -> dict[str, list[TokenSequence]]:
    """A share of each domain's calibration records, drawn by the seed, as tokens; a larger share holds a smaller."""
    text = {}
    for name, source in sources.items():
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        records = calibration_records(inputs[f"data_{name}"])
        if fraction < 1:
            random.Random(f"{seed}|{name}").shuffle(records)
            records = records[: max(1, round(fraction * len(records)))]
        text[name] = encode(tokenizer, records, max_length)
    return text


def _ordered(weights: dict[str, float], domains: list[str]) -> list[float]:
    """The domains' weights, in their order.

    A domain that is not named gets the mean of the named ones', and then all are scaled to the sum that was named: with
    {math: 0.6, code: 0.4}, chat as a third domain makes them 0.4, 0.267 and 0.333.
    """
    unknown = sorted(set(weights) - set(domains))
    if unknown or not weights:
        raise ValueError(f"merge.weights names {sorted(weights)}; the domains are {sorted(domains)}")
    named = sum(weights.values())
    mean = named / len(weights)
    scale = len(weights) / len(domains)
    return [scale * weights.get(name, mean) for name in domains]
