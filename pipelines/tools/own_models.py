"""What can be done in place of a cell, most of it with models of your own: the value of `experiment.tool`."""

from collections.abc import Callable
from importlib import import_module

from pipelines.config import Config

TOOLS = {
    "appendix_c1": "pipelines.tools.complexity_page:measure_complexity",
    "calibrate": "pipelines.tools.own_merge:calibrate_own",
    "check": "pipelines.tools.check:check_own",
    "doctor": "pipelines.tools.doctor.driver:examine_own",
    "patch": "pipelines.tools.patch:patch_own",
    "table2": "pipelines.tools.settings_page:show_settings",
}


def run_tool(config: Config) -> int:
    """Runs the tool that the experiment names; the exit status.

    Raises:
        ValueError: no such tool, or what that tool says of its settings.
    """
    name = config.experiment.tool
    if name not in TOOLS:
        raise ValueError(f"experiment.tool={name}: expected one of {', '.join(TOOLS)}")
    module, function = TOOLS[name].split(":")
    run: Callable[[Config], object] = getattr(import_module(module), function)
    found = run(config)
    return found if isinstance(found, int) else 0


def given(config: Config, usage: str, *keys: str) -> None:
    """Holds that settings which a tool cannot do without are there.

    Raises:
        ValueError: names those that are not, and the command.
    """
    missing = [key for key in keys if not getattr(config, key)]
    if missing:
        raise ValueError(f"{', '.join(missing)}: not given; {usage}")
