"""The validate stage: a model on held-out records of the calibration sources, greedily, as the authors tune.

For scales whose benchmarks have no validation problems. Correctness is decided as for calibration responses: by the
judge of the benchmark that a record's `task` names.
"""

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from eval.config import EngineConfig
from pipelines.data import draw_records
from pipelines.data.source import DataSource
from pipelines.runner.estimate import SMALL_GB, Estimate, ModelSize, Work
from pipelines.runner.resources import Resources
from pipelines.runner.stage import Node, Stage
from pipelines.stages.inputs import RECORDS, generating, model, require_engine

COLUMN = "{}_validation"  # of a domain, in reports


@dataclass
class ValidateConfig:
    """One model, held-out records of some domains."""

    model: str | None = None
    """The model, a folder or hub id (null: input `model`)."""

    records: dict[str, DataSource] = MISSING
    """Domain -> its records, which must have a judged task."""

    max_new_tokens: int = 1024
    """Tokens per answer."""

    limit: int | None = None
    """Records per domain, the first ones (null: all)."""

    seed: int = 0
    """Of the engine's requests and of the intervals' bootstrap; greedy answers do not depend on it."""

    judges: str | None = None
    """Hash of the judges that plugins registered (null: none)."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    """What generates."""


def validate(config: ValidateConfig, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Has the model answer each domain's records greedily and counts the right answers.

    Args:
        config: the records, and how answers are generated.
        inputs: `model` unless the config names one; `world` for data paths `world:…`.
        out: the stage's directory; gets results.json and samples/<domain>_validation.jsonl.

    Returns:
        tasks: of each domain a result as an evaluation's, of one sample a record.

    Raises:
        ValueError: records without a task that judges them; data as `pipelines.data.draw_records`.
    """
    from eval.results import task_result, write_results, write_samples
    from pipelines.data.responses import UNJUDGED, answering

    records = {
        name: list(islice(draw_records(source, inputs.get("world")), config.limit))
        for name, source in config.records.items()
    }
    for name, found in records.items():
        if any(record["task"] in UNJUDGED for record in found):
            raise ValueError(
                f"{config.records[name].path}: records without a task that judges answers; expected some whose format "
                f"has one, as scale.domains.{name}.validation"
            )
    results = {}
    chosen = str(model(inputs, "model", config.model))
    with answering(chosen, config.engine, max_new_tokens=config.max_new_tokens, seed=config.seed) as ask:
        for name, found in records.items():
            documents = [
                {
                    "doc_id": number,
                    "doc": record,
                    "arguments": [(record["prompt"],)],
                    "resps": [[response or ""]],
                    "correct": [right],
                }
                for number, (record, response, right) in enumerate(ask(found))
            ]
            column = COLUMN.format(name)
            results[column] = task_result(documents, 1, config.seed)
            write_samples(out / "samples" / f"{column}.jsonl", documents, results[column]["ids"])
    settings = {"temperature": 0.0, "seed": config.seed, "limit": config.limit, "max_new_tokens": config.max_new_tokens}
    write_results(out, settings, results)
    return {"tasks": results}


def needs(node: Node, size: ModelSize) -> Estimate:
    """The engine holds the weights and its cache."""
    return Estimate(size.model * 1.3, SMALL_GB)


def check(node: Node) -> None:
    """The engine; raises as `require_engine`."""
    require_engine(node.config.engine)


def resources(node: Node, size: ModelSize) -> Resources:
    """The GPUs that the engine shares a model between."""
    return generating(node.config.engine, size)


def work(node: Node, size: ModelSize) -> Work:
    """One answer to each record, half as long as it may be."""
    records = sum(min(one.limit or RECORDS, node.config.limit or RECORDS) for one in node.config.records.values())
    return Work(generated=size.forward(records * 0.5 * node.config.max_new_tokens), gigabytes=size.model)


SPEC = Stage("validate", ValidateConfig, validate, needs, resources, work, preflight=check)
