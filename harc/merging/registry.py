"""The merging methods by name. A method is one file: a settings dataclass and one function under `@method(...)`.

The files in the folders of `harc.merging.methods` are found by themselves; a file elsewhere registers its method when
it is imported.
"""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from importlib import import_module
from pkgutil import walk_packages
from typing import Any, Literal, TypeVar

from harc.merging.settings import MergeSettings, declared
from harc.plugins import load_installed

Function = TypeVar("Function", bound=Callable[..., Any])
Kind = Literal["tensor", "batch", "data"]


@dataclass(frozen=True)
class Method:
    """A merging method; `method` explains the fields that it takes.

    Attributes:
        summary: what it does, the first line of the function's docstring.
    """

    name: str
    label: str
    summary: str
    function: Callable[..., Any]
    settings: type[MergeSettings]
    reference: str
    kind: Kind
    uses_base: bool
    random: bool
    reads: Literal["tokens", "response tokens"]
    scratch_bytes: int
    elsewhere: Callable[..., Any] | None

    def published(self) -> dict[str, Any]:
        """The settings whose published value is not the default, with that value."""
        return {one.name: declared(one).published[0] for one in fields(self.settings) if declared(one).published}

    def configure(self, given: dict[str, Any], *, published: bool = False) -> MergeSettings:
        """Makes the settings from what was given; published: what was not given takes its published value.

        Raises:
            ValueError: an unknown setting (the valid ones are named) or a value out of range.
        """
        valid = {field.name: field.default for field in fields(self.settings)}
        unknown = sorted(set(given) - set(valid))
        if unknown:
            listed = ", ".join(f"{n} ({d})" if d is not MISSING and d is not None else n for n, d in valid.items())
            raise ValueError(f"merge method {self.name} has no setting {unknown[0]!r}; it has: {listed or 'none'}")
        try:
            return self.settings(**{**(self.published() if published else {}), **given})
        except ValueError as error:
            raise ValueError(f"merge method {self.name}: {error}") from None


_METHODS: dict[str, Method] = {}


def method(
    name: str,
    *,
    label: str,
    settings: type[MergeSettings] = MergeSettings,
    reference: str = "",
    kind: Kind = "tensor",
    uses_base: bool = True,
    random: bool = False,
    reads: Literal["tokens", "response tokens"] = "tokens",
    scratch_bytes: int = 0,
    elsewhere: Callable[..., Any] | None = None,
) -> Callable[[Function], Function]:
    """Registers a function as a merging method.

    Args:
        name: what `harc.merge` and `merge=NAME` call it, in lower case.
        label: its name in tables and figures.
        settings: its settings dataclass.
        reference: where it was published, a URL.
        kind: `tensor`: function(base, sources, weights, settings) merges one tensor at a time, in float32. `batch`: the
            same on the stacked linear layers of one shape in a block, `elsewhere` on the rest. `data`:
            function(job, settings) runs the sources on calibration data, see `harc.merging.data_merge.DataMerge`.
        uses_base: whether it merges task vectors; without, `base` is None.
        random: whether the function also takes `seed`, an integer of its own for each tensor.
        reads: of a `data` method, what each source's data must have some of.
        scratch_bytes: of a `data` method, disk space that it needs while it works, per parameter and source.
        elsewhere: of a `batch` method, the function(base, sources, weights, settings) that merges a tensor which is no
            linear layer of a block (norms, biases, embeddings, the head); None keeps the base's.

    Raises:
        ValueError: a name that another function has.
    """

    def register(function: Function) -> Function:
        there = _METHODS.get(name)
        if there is not None and there.function.__module__ != function.__module__:
            modules = sorted([there.function.__module__, function.__module__])
            raise ValueError(f"merge method {name!r} is in two modules, {modules[0]} and {modules[1]}: rename one")
        summary = (inspect.getdoc(function) or "").partition("\n")[0]
        _METHODS[name] = Method(
            name,
            label,
            summary,
            function,
            settings,
            reference,
            kind,
            uses_base,
            random,
            reads,
            scratch_bytes,
            elsewhere,
        )  # fmt: skip
        return function

    return register


def methods() -> dict[str, Method]:
    """All registered methods by name: HARC's own, those of installed packages, those of imported modules."""
    package = import_module("harc.merging.methods")
    for found in walk_packages(package.__path__, f"{package.__name__}."):
        import_module(found.name)
    load_installed()
    return dict(sorted(_METHODS.items()))


def find_method(name: str) -> Method:
    """Looks a method up.

    Raises:
        ValueError: an unknown name; the valid ones are named.
    """
    found = methods()
    if name not in found:
        raise ValueError(f"unknown merge method {name!r}; valid are: {', '.join(found)}")
    return found[name]
