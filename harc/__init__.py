"""HARC: Hessian-aware router calibration for merged Mixture-of-Experts language models.

    harc.find_routers(model)                       routers by layer of any MoE that transformers can load
    harc.solve_router(features, routers, ...)      one router from its sources' distributions
    harc.calibrate(merged, sources, data, ...)     the routers of a merged checkpoint, layer by layer
    harc.repair(merged, sources, data, ...)        all its linear maps, layer by layer
    harc.diagnose(model, sources, data, ...)       how far a merged model's routing and loss are from its sources'
    harc.routing_kl, harc.mismatch, harc.overlap, harc.logit_shift
    harc.merge(method, sources, base, out, ...)    merging, streamed shard by shard
    harc.swap_routers(model, routers, out)         a model with another model's routers
    harc.replay_decisions(model, source)           a loaded model routed by another one's decisions
    harc.check(model, sources, base)               whether everything of a merge arrived, whatever tool made it
    harc.attribute(merged, sources, data)          what of a merge's loss the routing holds
    harc.save_patch(calibrated, merged, out)       a calibrated model as a file of what changed
    harc.apply_patch(patch, merged, out)           and back

Names are imported when first used, so that `import harc` is light. No module has the name of a function.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "CheckReport": "harc.checking.findings",
    "CalibrationReport": "harc.calibration.report",
    "CalibrationSettings": "harc.calibration.settings",
    "MergeReport": "harc.merging.driver",
    "RepairReport": "harc.repairing.report",
    "RepairSettings": "harc.repairing.settings",
    "Router": "harc.models.routers",
    "RouterSolution": "harc.solver.solution",
    "RoutingReport": "harc.diagnosis",
    "TokenSequence": "harc.tokens",
    "apply_patch": "harc.patching",
    "attribute": "harc.attribution",
    "calibrate": "harc.calibration.driver",
    "check": "harc.checking.driver",
    "diagnose": "harc.diagnosis",
    "encode": "harc.tokens",
    "find_routers": "harc.models.routers",
    "logit_shift": "harc.measures",
    "merge": "harc.merging.driver",
    "mismatch": "harc.measures",
    "overlap": "harc.measures",
    "repair": "harc.repairing.driver",
    "replay_decisions": "harc.models.replay",
    "routing_kl": "harc.measures",
    "save_patch": "harc.patching",
    "SolveSettings": "harc.solver.settings",
    "solve_router": "harc.solver.solve",
    "swap_routers": "harc.models.swap",
}
_MODULES = ("calibration", "checkpoint", "measures", "merging", "models", "repairing", "solver", "tokens")
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _MODULES:
        return import_module(f"harc.{name}")
    raise AttributeError(f"module 'harc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *_MODULES]
