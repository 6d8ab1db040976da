"""The model card of a calibrated merge: its origin, its calibration, and its routing on held-out text."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pipelines.report.plots import Curves, layers_plot
from pipelines.report.style import draw_png, draw_svg
from pipelines.versions import versions

FIGURE = "routing_kl"


def write_card(
    folder: Path,
    merged: str,
    sources: Sequence[str],
    data: Sequence[str],
    settings: dict[str, Any],
    record: dict[str, Any],
) -> None:
    """Writes README.md and routing_kl.png, .svg into the checkpoint's folder.

    Args:
        folder: the calibrated checkpoint.
        merged: the merge it was made from.
        sources: models whose routing it was fitted to.
        data: a file a source.
        settings: of the calibration.
        record: `calibration`, `before` and `after`: the reports of harc.calibrate and, on held-out text, harc.diagnose.
    """
    before, after = record["before"], record["after"]
    layers = before["layers"]
    picture = layers_plot(
        FIGURE,
        [Curves(Path(merged).name, _by_layer(before["kl"]), _by_layer(after["kl"]))],
        title="Routing KL by layer",
        caption="Dashed: as merged. Solid: calibrated. Mean of the domains, on held-out text.",
        axis="Routing KL (nats)",
        scale="held-out text",
        columns=1,
    )
    (folder / f"{FIGURE}.svg").write_text(draw_svg(picture))
    (folder / f"{FIGURE}.png").write_bytes(draw_png(picture))
    fitted = {entry["layer"]: entry for entry in record["calibration"]["layers"]}
    rows = [
        f"| {i + 1} | {_by_layer(before['kl'])[i]:.5f} | {_by_layer(after['kl'])[i]:.5f} "
        f"| {100 * _by_layer(before['mismatch'])[i]:.2f} | {100 * _by_layer(after['mismatch'])[i]:.2f} "
        f"| {_solve(fitted.get(layer))} |"
        for i, layer in enumerate(layers)
    ]
    held = ", ".join(str(count) for count in after["tokens"].values())
    sources_yaml = "\n".join(f"- {Path(source).name}" for source in sources)
    settings_text = ", ".join(f"{key}={value}" for key, value in settings.items() if value is not None)
    software = ", ".join(f"{name} {version}" for name, version in versions().items() if name in _SOFTWARE)
    tokens = ", ".join(map(str, record["calibration"]["tokens"]))
    means = " | ".join(
        [f"{fmean(_by_layer(report['kl'])):.5f}" for report in (before, after)]
        + [f"{100 * fmean(_by_layer(report['mismatch'])):.2f}" for report in (before, after)]
    )
    text = f"""---
base_model:
{sources_yaml}
tags:
- merge
- moe
- harc
---
# {Path(merged).name}, routers calibrated

The Mixture-of-Experts merge `{Path(merged).name}` with its routers calibrated by HARC (Hessian-Aware Router
Calibration). Only the routers differ from the merge.

- sources: {", ".join(f"`{Path(source).name}`" for source in sources)}
- calibration text: {", ".join(f"`{Path(name).name}`" for name in data)} ({tokens} tokens)
- settings: {settings_text}
- made in {record["calibration"]["seconds"]:.1f} s with {software}

## Routing on held-out text ({held} tokens)

Routing KL from source to merged model in nats, and the share of (token, layer) decisions whose set of experts
differs, means of the domains.

| layer | KL, merged | KL, calibrated | mismatched %, merged | mismatched %, calibrated | solve |
| --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}
| mean | {means} | |

![Routing KL by layer]({FIGURE}.png)
"""
    (folder / "README.md").write_text(text)


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
