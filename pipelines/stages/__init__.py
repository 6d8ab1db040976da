"""The stages, one file each: its configuration, its function, its version, what it needs, and the checks before a run.

A file `NAME.py` here that declares `SPEC = Stage(name="NAME", …)` is a stage; nothing else lists them.
"""

from importlib import import_module
from pkgutil import iter_modules

from pipelines.runner.stage import Stage


def find_stage(name: str) -> Stage:
    """The stage that pipelines/stages/<name>.py declares.

    Raises:
        ModuleNotFoundError: there is no such file.
    """
    return import_module(f"{__name__}.{name}").SPEC


def stage_names() -> list[str]:
    """The names of all stages."""
    return [module.name for module in iter_modules(__path__) if module.name != "inputs"]
