"""The options of the group `merge`, made from the methods' declarations.

Every registered method (harc/merging/methods, and plugins) is an option with its own settings as typed keys. Where
the paper's authors run another value than the default, `merge.published=true` chooses it; a key set by hand wins.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import MISSING, OmegaConf

from harc.merging.registry import Method, find_method, methods
from harc.merging.settings import WeightedSettings, declared

UNMERGED = ("individual", "base")
_OWN_KEYS = ("method", "label", "published", "align", "seed")


@dataclass
class MergeConfig:
    """What every option has.

    method, label: its name, and the one in tables; published: whether settings are the paper's authors' where they
    differ; align: whether the sources' experts are put in the base's order first.
    """

    method: str = MISSING
    label: str = MISSING
    published: bool = False
    align: bool = False


@dataclass
class IndividualConfig(MergeConfig):
    """The source models themselves, each on its own domain: the upper bound."""

    method: str = "individual"
    label: str = "Individual"


@dataclass
class BaseModelConfig(MergeConfig):
    """The model the sources were tuned from, unmerged: the lower bound."""

    method: str = "base"
    label: str = "Base"


def merge_options() -> dict[str, type[MergeConfig]]:
    """The options of the group `merge`, by name.

    Raises:
        ValueError: a plugin's method has the name of an option that merges nothing.
    """
    found = methods()
    for name in UNMERGED:
        if name in found:
            raise ValueError(f"merge method {name!r} of {found[name].function.__module__}: merge={name} merges nothing")
    merged = {name: _option(one) for name, one in found.items()}
    return {"individual": IndividualConfig, "base": BaseModelConfig, **merged}


def _option(found: Method) -> type[MergeConfig]:
    """The typed option of a method: its settings as keys, their defaults the declared ones."""
    kinds = get_type_hints(found.settings)
    keys: list[tuple[str, Any, Any]] = [("method", str, found.name), ("label", str, found.label)]
    for one in dataclasses.fields(found.settings):
        if one.name in _OWN_KEYS:
            raise ValueError(f"merge method {found.name}: a setting cannot be called {one.name}")
        if one.name == "weights":  # of any type here: OmegaConf can give no keys to a typed mapping that has none
            keys.append((one.name, Any, None))
            continue
        default = _either(declared(one).published[0], one.default) if declared(one).published else one.default
        keys.append((one.name, kinds[one.name], default))
    if found.random:
        keys.append(("seed", int, "${seed}"))
    return dataclasses.make_dataclass(
        f"{found.name.title().replace('_', '')}Config", keys, bases=(MergeConfig,), namespace={"__doc__": found.summary}
    )


def _either(published: Any, default: Any) -> str:
    """An interpolation that is the one value with `published: true` beside it, and the other without."""
    return f"${{published_or:${{.published}},{_literal(published)},{_literal(default)}}}"


def _literal(value: Any) -> str:
    """The value as the command line writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def register_resolvers() -> None:
    """Registers what conf/ uses: `published_or`, `merge_names`, `merge_grid`, `merge_help`, `merge_settings_help`."""
    resolvers: dict[str, Callable[..., Any]] = {
        "published_or": lambda published, theirs, ours: theirs if published else ours,
        "merge_names": lambda asked: ",".join(names_of(asked)),
        "merge_grid": lambda asked, domains, alphas: grid_lines(names_of(asked), list(domains), list(alphas)),
        "merge_help": lambda: ", ".join(["individual", "base", *methods()]),
        "merge_settings_help": settings_help,
    }
    for name, function in resolvers.items():
        OmegaConf.register_new_resolver(name, function, replace=True)


def names_of(asked: Any) -> list[str]:
    """The methods that the setting `merges` asks for: `all`, a name, or a list of names.

    Raises:
        ValueError: an unknown method, or none.
    """
    if asked == "all":
        return list(methods())
    names = [asked] if isinstance(asked, str) else list(asked or [])
    if not names:
        raise ValueError(f"merges={asked}: expected `all` or a list of merging methods")
    return [find_method(name).name for name in names]


def grid_lines(names: list[str], domains: list[str], alphas: Sequence[float] = ()) -> list[str]:
    """The cells of the tuning grid: for each method one line with every value that its settings declare.

    Methods with published weights for these domains are also tried with equal ones; methods with nothing to try are
    left out. A last line has HARC on every method, as it is set, with each of `alphas`.
    """
    lines = []
    for found in map(find_method, names):
        tried = {one.name: declared(one).tries for one in dataclasses.fields(found.settings) if declared(one).tries}
        words = [f"merge.{name}={','.join(map(_literal, values))}" for name, values in tried.items()]
        published = _published_weights(found, domains)
        if published:
            equal = dict.fromkeys(domains, round(1 / len(domains), 6))
            words.append(f"merge.weights={_mapping(published)},{_mapping(equal)}")
        if words:
            lines.append(" ".join([f"merge={found.name}", *words]))
    if alphas:
        tried_alphas = ",".join(map(_literal, alphas))
        lines.append(f"merge={','.join(names)} calibrate=harc calibrate.alpha={tried_alphas}")
    return lines


def _mapping(weights: Mapping[str, float]) -> str:
    return "{" + ",".join(f"{name}:{weight:g}" for name, weight in weights.items()) + "}"


def settings_help(name: str) -> str:
    """The settings of a method, one line each, for the help text."""
    if name in UNMERGED:
        return f"merge={name} merges nothing and has no settings."
    found = find_method(name)
    lines = [f"Settings of merge={name} ({found.label}), as in merge.KEY=VALUE:"]
    rows = [*settings_rows(found)]
    lines += [f"  {key} ({default}): {meaning}" for key, default, meaning in rows] or ["  none"]
    return "\n".join(lines)


def settings_rows(found: Method) -> list[tuple[str, str, str]]:
    """Key, default and meaning (with range and published value) of each setting."""
    rows = []
    for one in dataclasses.fields(found.settings):
        what = declared(one)
        notes = [what.expected] if what.expected and not what.one_of else []
        notes += [f"published: {_literal(what.published[0])}"] if what.published else []
        noted = f" ({'; '.join(notes)})" if notes else ""
        if one.name == "weights":
            rows.append((one.name, "null", f"by domain, as {{math: 0.5, code: 0.5}}; {what.meaning}"))
            continue
        rows.append((one.name, _literal(one.default), what.meaning + noted))
    if found.random:
        rows.append(("seed", "${seed}", "of what is drawn at random; the run's unless given"))
    return rows


def merge_settings(found: Method, merge: MergeConfig, domains: list[str]) -> dict[str, Any]:
    """The settings of an option for the merge stage: all of them, `weights` by domain, `align` where it is set.

    Raises:
        ValueError: settings out of range, or weights that do not name the domains.
    """
    settings = {
        name: value for name, value in dataclasses.asdict(merge).items() if name == "seed" or name not in _OWN_KEYS
    }
    found.configure({name: value for name, value in settings.items() if name not in ("weights", "seed")})
    if merge.align:  # an argument of harc.merge; absent unless set, so that what was merged without it stays valid
        settings["align"] = True
    if issubclass(found.settings, WeightedSettings):
        settings["weights"] = weights_by_domain(found, settings["weights"], domains)
    return settings


def weights_by_domain(found: Method, given: Any, domains: list[str]) -> dict[str, float]:
    """The weights of the domains: those given, else the published ones if they are of these domains, else equal.

    Raises:
        ValueError: weights that are no numbers by domain, or name other domains than the run's.
    """
    if given is not None:
        numbers = isinstance(given, Mapping) and all(isinstance(value, int | float) for value in given.values())
        if not numbers:
            raise ValueError(f"merge.weights={given}: expected numbers by domain, as {{math: 0.6, code: 0.4}}")
        if set(given) != set(domains):
            raise ValueError(f"merge.weights names {sorted(given)}; the domains are {sorted(domains)}")
        return {name: given[name] for name in domains}
    published = _published_weights(found, domains)
    if published:
        return {name: published[name] for name in domains}
    settings = found.settings()
    fits = isinstance(settings, WeightedSettings) and len(settings.published_weights) == len(domains)
    weights = [1 / len(domains)] * len(domains) if fits else settings.resolved_weights(len(domains))
    return dict(zip(domains, weights, strict=True))


def _published_weights(found: Method, domains: list[str]) -> dict[str, float]:
    """The published weights, if they are of these domains; else none."""
    weights: dict[str, float] = getattr(found.settings, "published_weights", {})
    return weights if weights and set(weights) == set(domains) else {}


def plugin_of(function: Callable[..., Any]) -> tuple[str | None, str | None]:
    """The module of a function from outside harc, and a hash of its source."""
    module = function.__module__
    if module.partition(".")[0] == "harc":
        return None, None
    file = import_module(module).__file__
    return module, hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12] if file else None
