"""HARC: Hessian-aware router calibration for merged Mixture-of-Experts language models.

    harc.find_routers(model)                       routers by layer of any MoE that transformers can load
    harc.solve_router(features, routers, ...)      one router from its sources' distributions
    harc.calibrate(merged, sources, data, ...)     the routers of a merged checkpoint, layer by layer
    harc.diagnose(model, sources, data, ...)       how far a merged model's routing is from its sources'
    harc.routing_kl, harc.mismatch, harc.logit_shift
    harc.merge(method, sources, base, out, ...)    merging, streamed shard by shard
    harc.swap_routers(model, routers, out)         a model with another model's routers

Names are imported when first used, so that `import harc` is light.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_HOMES = {
    "CalibrationReport": "harc.calibrate",
    "MergeReport": "harc.merge",
    "Router": "harc.routers",
    "RouterSolution": "harc.solver",
    "RoutingReport": "harc.diagnose",
    "TokenSequence": "harc.tokens",
    "calibrate": "harc.calibrate",
    "diagnose": "harc.diagnose",
    "encode": "harc.tokens",
    "find_routers": "harc.routers",
    "logit_shift": "harc.measures",
    "merge": "harc.merge",
    "mismatch": "harc.measures",
    "routing_kl": "harc.measures",
    "solve_router": "harc.solver",
    "swap_routers": "harc.swap",
}
_MODULES = ("checkpoint", "tokens", "routers", "operator", "preconditioner", "solver", "measures", "streaming")
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return import_module(f"harc.{name}")
    raise AttributeError(f"module 'harc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *_MODULES]


class _Package(ModuleType):
    """Keeps harc.calibrate, harc.diagnose and harc.merge the functions when the modules of these names are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
