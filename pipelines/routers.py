"""The stages of the method itself: merge, calibrate, diagnose. Each is a call of the harc library on checkpoints."""

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

import harc
from harc.tokens import TokenSequence, encode
from pipelines.config import CalibrateStageConfig, DataSource, DiagnoseConfig, MergeStageConfig
from pipelines.data import load_records


def merge(config: MergeStageConfig, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Merges the sources. inputs: `base`, `source_<domain>`, and `data_<domain>` for methods that read text."""
    sources = _sources(config.sources, inputs)
    data = None
    if any(name.startswith("data_") for name in inputs):
        data = _calibration_text(sources, inputs, config.fraction, config.max_length)
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
    data = _calibration_text(sources, inputs, config.fraction, config.max_length)
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


def diagnose(config: DiagnoseConfig, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Routing KL, mismatch and logit shift of `model` against each source, on text that calibration never saw."""
    sources = _sources(config.sources, inputs)
    diagnosed = model(inputs, "model", config.model)
    tokenizer = AutoTokenizer.from_pretrained(next(iter(sources.values())), trust_remote_code=False)
    text = [
        encode(tokenizer, load_records(config.heldout[name], inputs.get("world")), config.max_length)
        for name in sources
    ]
    report = harc.diagnose(diagnosed, list(sources.values()), text, dtype=getattr(torch, config.dtype), device=device())
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
    sources: dict[str, Path | str], inputs: dict[str, Path], fraction: float, max_length: int
) -> dict[str, list[TokenSequence]]:
    """The first `fraction` of each domain's calibration records, as tokens."""
    text = {}
    for name, source in sources.items():
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        made = [file for file in inputs[f"data_{name}"].glob("*.jsonl") if file.name != "rejected.jsonl"]
        records = load_records(DataSource(path=str(made[0])))
        text[name] = encode(tokenizer, records[: max(1, round(fraction * len(records)))], max_length)
    return text


def _ordered(weights: dict[str, float], domains: list[str]) -> list[float]:
    if set(weights) != set(domains):
        raise ValueError(f"merge.weights names {sorted(weights)}; the domains are {sorted(domains)}")
    return [weights[name] for name in domains]
