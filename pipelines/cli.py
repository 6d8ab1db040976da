"""The command line: Hydra's, with one clear line for what goes wrong and an exit status that scripts can trust."""

import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from pipelines.config import merging, schema
from pipelines.config.plugins import load_plugins
from pipelines.explain import explain
from pipelines.places import CONF
from pipelines.sweep.combinations import register_resolvers
from pipelines.sweep.jobs import typed
from pipelines.sweep.outcome import gathered, noted

register_resolvers()
merging.register_resolvers()


def main() -> int:
    """Runs Hydra's command line; returns the exit status (0 only if every cell is well)."""
    debug = any(argument.lower() in ("debug=true", "debug=1") for argument in sys.argv)
    os.environ["HYDRA_FULL_ERROR"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        load_plugins(sys.argv[1:])
        schema.register()
        with gathered() as outcome:
            _hydra_main()
        if outcome.errors:
            raise outcome.errors[0]
    except KeyboardInterrupt:
        _say("interrupted; finished stages stay, the same command goes on from there")
        return 130
    except Exception as error:
        if debug:
            raise
        _say(explain(error))
        return 1
    return outcome.status


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _hydra_main(composed: DictConfig) -> None:
    _noting_errors(composed)


def _noting_errors(composed: DictConfig) -> None:
    # Raised past Hydra, an error would be announced twice and end a sweep without its report.
    try:
        _job(composed)
    except Exception as error:
        outcome = noted()
        if outcome is None:
            raise
        outcome.errors.append(error)


def _job(composed: DictConfig) -> None:
    config = typed(composed, list(HydraConfig.get().overrides.task))
    if config.experiment.runs:
        from pipelines.sweep.suite import run_suite

        run_suite(config)
    elif config.experiment.tool:
        from pipelines.tools.own_models import run_tool

        status = run_tool(config)
        if outcome := noted():
            outcome.status = status
    elif config.experiment.dashboard:
        from pipelines.tracking.dashboard import make_dashboard

        make_dashboard(config)
    else:
        from pipelines.sweep.alone import run_alone

        run_alone(config)


def _say(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)
    if not text.startswith("interrupted"):
        print("(debug=true shows where it was raised)", file=sys.stderr)
