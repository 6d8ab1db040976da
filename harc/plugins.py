"""Modules from outside the package that register merging methods and the like, by name or by entry point.

An installed package announces its module in the entry-point group `harc.plugins`:

    [project.entry-points."harc.plugins"]
    mine = "my_package.my_module"
"""

import functools
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import entry_points

GROUP = "harc.plugins"


def load(modules: Iterable[str]) -> None:
    """Imports modules, so that what they register is there.

    Raises:
        ImportError: a module that is not there, or that fails to import something; names it.
    """
    for module in modules:
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            if error.name and (module == error.name or module.startswith(f"{error.name}.")):
                raise ImportError(
                    f"plugin {module}: no such module; its folder must be the working directory or on PYTHONPATH"
                ) from error
            raise ImportError(f"plugin {module}: {error}") from error


@functools.cache
def load_installed() -> None:
    """Imports the modules that installed packages announce, once per process.

    Raises:
        ImportError: one that cannot be imported; names it.
    """
    load(entry.value.partition(":")[0] for entry in entry_points(group=GROUP))
