"""The command line: Hydra's, with one clear line for what goes wrong and an exit status that scripts can trust."""

import dataclasses
import logging
import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipelines import schema
from pipelines.callbacks import sweep_status
from pipelines.cell import describe, excluded, failed, identity, run_cell
from pipelines.cells import compose_cell
from pipelines.config import Config
from pipelines.records import write_record
from pipelines.tuned import apply_tuned

log = logging.getLogger(__name__)

_errors: list[Exception] = []
CONF = Path(__file__).resolve().parent.parent / "conf"


def main() -> int:
    """Runs Hydra's command line; returns the exit status (0 only if every cell is well)."""
    debug = any(argument.lower() in ("debug=true", "debug=1") for argument in sys.argv)
    os.environ["HYDRA_FULL_ERROR"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    schema.register()
    try:
        _hydra_main()
        if _errors:
            raise _errors[0]
    except KeyboardInterrupt:
        _say("interrupted; finished stages stay, the same command goes on from there")
        return 130
    except Exception as error:
        if debug:
            raise
        _say(explain(error))
        return 1
    return sweep_status.code


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _hydra_main(composed: DictConfig) -> None:
    # Raised past Hydra, an error would be announced twice and end a sweep without its report.
    try:
        _job(composed)
    except Exception as error:
        _errors.append(error)


def _job(composed: DictConfig) -> None:
    refuse_unknown_keys(composed)
    config = OmegaConf.to_object(compose_cell(composed))
    assert isinstance(config, Config)
    config = apply_tuned(config)
    if config.experiment.runs:
        from pipelines.suite import run_suite

        run_suite(config)
        return
    if config.plan:
        from pipelines.plan import print_plan

        print_plan(config)
        return
    if config.experiment.own_merge:
        from pipelines.own_merge import calibrate_own

        calibrate_own(config)
        return
    if config.experiment.dashboard:
        from pipelines.dashboard import make_dashboard

        make_dashboard(config)
        return
    _run(config)


def _run(config: Config) -> None:
    """One cell. In a sweep its failure is recorded and the other cells go on; alone it is raised."""
    hydra_config = HydraConfig.get()
    sweep = hydra_config.mode == RunMode.MULTIRUN
    out = Path(hydra_config.runtime.output_dir)
    reason = excluded(config) if sweep else None
    if reason is not None:
        write_record(out, {**identity(config), "status": "excluded", "error": reason})
        return
    try:
        record = {**run_cell(config), "overrides": list(hydra_config.overrides.task)}
    except Exception as error:
        if not sweep:
            raise
        log.error("%s failed: %s", describe(config), explain(error), exc_info=config.debug)
        write_record(out, {**failed(config, explain(error)), "overrides": list(hydra_config.overrides.task)})
        return
    write_record(out, record)
    from pipelines.tracking import log_cell

    log_cell(config.tracker, record)
    if not sweep:
        from pipelines.report import build_report, print_report

        print_report(build_report(config.experiment, config.scale.name, [record], Path(config.outputs)))


def refuse_unknown_keys(node: DictConfig, at: str = "") -> None:
    """Refuses what `+key=value` appended to a typed node: Hydra lets it in, and nothing would ever read it.

    Raises:
        ValueError: names the key and the valid ones.
    """
    kind: Any = OmegaConf.get_type(node)
    typed = dataclasses.is_dataclass(kind)
    valid = sorted(field.name for field in dataclasses.fields(kind)) if typed else []
    for key in map(str, node):
        if typed and key not in valid:
            raise ValueError(f"unknown key {at}{key} (valid keys there: {', '.join(valid)})")
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            refuse_unknown_keys(node[key], f"{at}{key}.")


def explain(error: BaseException) -> str:
    """One line a user can act on, for any error; composition errors name what would have been valid."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explain_composition(error)
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError | RuntimeError | ImportError):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text}"


def _explain_composition(error: BaseException) -> str:
    causes: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in causes:
        causes.append(at)
        at = at.__cause__ or at.__context__
    text = "; ".join(filter(None, dict.fromkeys(_first_lines(cause) for cause in causes)))
    for cause in causes:
        valid = _valid_keys(cause)
        if valid:
            return f"{text} (valid keys there: {', '.join(valid)})"
    return text


def _first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("full_key:", "object_type=", "reference_type="))]
    text = " ".join(kept).split(" Config search path:")[0]
    return "" if "$VALUE" in text else text.replace("Available options", "; available options")


def _valid_keys(error: BaseException) -> list[str]:
    node: Any = getattr(error, "parent_node", None)
    if isinstance(error, OmegaConfBaseException) and isinstance(node, DictConfig) and "not in" in str(error):
        return sorted(str(key) for key in node)
    return []


def _say(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)
    if not text.startswith("interrupted"):
        print("(debug=true shows where it was raised)", file=sys.stderr)
