"""`plugins=[my_module]`: modules from outside the package, imported before the configuration is composed.

A module is looked for in the working directory and on PYTHONPATH. What it registers is there like HARC's own: a merging
method, for one, is `merge=NAME` with its settings typed.
"""

import os
import sys
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser

from harc import plugins


def load_plugins(arguments: Sequence[str]) -> None:
    """Imports the modules that the command line names, after those that installed packages announce.

    Raises:
        ImportError: a module that is not there, or that fails to import something; names it.
        ValueError: `plugins` is not a list of module names.
    """
    plugins.load_installed()
    words = [word for word in arguments if word.lstrip("+").partition("=")[0] == "plugins"]
    for override in OverridesParser.create().parse_overrides(words):
        load_modules(override.value())


def load_modules(modules: object) -> None:
    """Imports modules by name, from the working directory too.

    Raises:
        ImportError: a module that is not there, or that fails to import something; names it.
        ValueError: not a list of module names.
    """
    names = [modules] if isinstance(modules, str) else modules
    if not isinstance(names, Sequence) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"plugins={modules}: expected a list of module names, as in plugins=[my_module]")
    if names and os.getcwd() not in sys.path:  # noqa: PTH109 (a string, as sys.path holds)
        sys.path.append(os.getcwd())  # noqa: PTH109
    plugins.load(names)
