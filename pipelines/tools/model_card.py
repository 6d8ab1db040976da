"""The model card of a calibrated or repaired merge: its origin, what was done, and its routing on held-out text."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from harc.patching import Patch
from pipelines.report.figures.plots import Curves, layers_plot
from pipelines.report.figures.style import draw_png, draw_svg
from pipelines.runner.versions import versions

FIGURE = "routing_kl"


def write_card(
    folder: Path,
    merged: str,
    sources: Sequence[str],
    data: Sequence[str],
    settings: dict[str, Any],
    record: dict[str, Any],
    patch: Patch | None,
) -> None:
    """Writes README.md and routing_kl.png, .svg into the checkpoint's folder.

    Args:
        folder: the calibrated checkpoint.
        merged: the merge it was made from.
        sources: models whose routing it was fitted to.
        data: a file a source.
        settings: of the calibration.
        record: `calibration` or `repair`, what harc.calibrate or harc.repair reports; `before` and `after`, what
            harc.diagnose does on held-out text.
        patch: what differs from the merge; None if nothing does.
    """
    before, after = record["before"], record["after"]
    done = "repaired" if "repair" in record else "calibrated"
    report = record["repair"] if "repair" in record else record["calibration"]
    layers = before["layers"]
    picture = layers_plot(
        FIGURE,
        [Curves(Path(merged).name, _by_layer(before["kl"]), _by_layer(after["kl"]))],
        title="Routing KL by layer",
        caption=f"Dashed: as merged. Solid: {done}. Mean of the domains, on held-out text.",
        axis="Routing KL (nats)",
        scale="held-out text",
        columns=1,
    )
    (folder / f"{FIGURE}.svg").write_text(draw_svg(picture))
    (folder / f"{FIGURE}.png").write_bytes(draw_png(picture))
    fitted = {entry["layer"]: entry for entry in report["layers"]}
    rows = [
        f"| {i + 1} | {_by_layer(before['kl'])[i]:.5f} | {_by_layer(after['kl'])[i]:.5f} "
        f"| {100 * _by_layer(before['mismatch'])[i]:.2f} | {100 * _by_layer(after['mismatch'])[i]:.2f} "
        f"| {_solve(fitted.get(layer)) if done == 'calibrated' else _maps(fitted[layer])} |"
        for i, layer in enumerate(layers)
    ]
    held = ", ".join(str(count) for count in after["tokens"].values())
    sources_yaml = "\n".join(f"- {Path(source).name}" for source in sources)
    settings_text = ", ".join(f"{key}={value}" for key, value in settings.items() if value is not None)
    software = ", ".join(f"{name} {version}" for name, version in versions().items() if name in _SOFTWARE)
    tokens = ", ".join(map(str, report["tokens"]))
    means = " | ".join(
        [f"{fmean(_by_layer(one['kl'])):.5f}" for one in (before, after)]
        + [f"{100 * fmean(_by_layer(one['mismatch'])):.2f}" for one in (before, after)]
    )
    text = f"""---
base_model:
{sources_yaml}
tags:
- merge
- moe
- harc
---
# {Path(merged).name}, {_TITLE[done]}

The Mixture-of-Experts merge `{Path(merged).name}` {_WHAT[settings.get("target", "repair")]}

- sources: {", ".join(f"`{Path(source).name}`" for source in sources)}
- calibration text: {", ".join(f"`{Path(name).name}`" for name in data)} ({tokens} tokens)
- settings: {settings_text}
- made in {report["seconds"]:.1f} s with {software}

## Routing on held-out text ({held} tokens)

Routing KL from source to merged model in nats, and the share of (token, layer) decisions whose set of experts
differs, means of the domains.

| layer | KL, merged | KL, {done} | mismatched %, merged | mismatched %, {done} | fit |
| --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}
| mean | {means} | |

![Routing KL by layer]({FIGURE}.png)
{_patched(patch, merged) if patch else ""}"""
    (folder / "README.md").write_text(text)


def _patched(patch: Patch, merged: str) -> str:
    """How to make the model of the merge."""
    return f"""
## As a patch

`{patch.path.name}`, beside this folder, is what differs from the merge: {len(patch.tensors)} tensors,
{patch.bytes / 1e6:.2f} MB of {patch.model_bytes / 1e6:.2f} MB{_BEYOND if patch.others else ""}. It makes this model of
`{Path(merged).name}`, and of no other one (its tensors' digest must be `{patch.fits[:16]}…`):

```python
import harc

harc.apply_patch("{patch.path.name}", "{Path(merged).name}", out="calibrated")  # without out, in place
```

```
python run.py +experiment=patch patch={patch.path.name} model={Path(merged).name} out=calibrated
```
"""


_BEYOND = " (more than routers: a repair changes most weights)"
_TITLE = {"calibrated": "routers calibrated", "repaired": "blocks repaired"}
_CALIBRATED = """with its routers calibrated by HARC (Hessian-Aware Router
Calibration). Only the routers differ from the merge."""
_WHAT = {
    "merged_inputs": f"{_CALIBRATED} Each was fitted to what the sources' routers make of the merged model's hidden "
    "states.",
    "source_inputs": f"{_CALIBRATED} Each was fitted, on the merged model's hidden states, to what the sources route "
    "on their own (target=source_inputs), and kept only where it is better on text held out from the fit.",
    "repair": "with its linear maps fitted, layer by layer and in closed\nform, to what its sources compute (HARC, "
    "`calibrate=repair`). Norms, embeddings and head are the merge's.",
}
_SOFTWARE = ("harc", "torch", "transformers")


def _by_layer(domains: dict[Any, list[float]]) -> list[float]:
    """Mean of the domains, a value a layer."""
    return [fmean(values) for values in zip(*domains.values(), strict=True)]


def _solve(layer: dict[str, Any] | None) -> str:
    if layer is None:
        return "as merged"
    if layer["kept"]:
        return "kept as merged: no setting lowered held-out KL"
    state = "" if layer["converged"] else f", **not converged: {layer['reason']}**"
    return f"{layer['iterations']} iterations, residual {layer['residual']:.1e}{state}"


def _maps(layer: dict[str, Any]) -> str:
    """How many maps were fitted, and what is left of their squared error."""
    count, kept = (sum(one[key] for one in layer["maps"]) for key in ("maps", "kept"))
    if not count:
        return "router alone"
    before, after = (fmean(one[key] for one in layer["maps"]) for key in ("error_before", "error_after"))
    return f"{count - kept} of {count} maps fitted, relative error {before:.3f} → {after:.3f}"
