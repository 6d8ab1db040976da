"""Beyond the paper: each merge as it was, with HARC, with own targets, and with its blocks repaired.

Own targets fit the routers to what each source routes on its own hidden states; router SFT trains them to the same by
gradient; repair fits the other linear maps too. Two negative controls stand beside them: routers changed at random by
as much as HARC changes them, and HARC with the domains swapped. Judged by routing KL, by held-out loss and by accuracy,
each paired with the merge as it was.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean

from pipelines.record import CellRecord
from pipelines.report.figures.dots import Dot, DotPanel, Level, dots_plot
from pipelines.report.figures.lines import LinePanel, Series, lines_plot
from pipelines.report.figures.style import Picture
from pipelines.report.notes import notes
from pipelines.report.registry import FAILS, HOLDS, LEANS, OPEN, Content, Fact, Finding, Sweep, report
from pipelines.report.tables.accuracy import setting_table
from pipelines.report.tables.evidence import (
    ACCURACY,
    LOSS,
    Effect,
    accuracy_effects,
    effect_rows,
    effects_as_table,
    loss_effects,
    mean_effect,
)
from pipelines.report.tables.routing import by_domain, mean_by_layer
from pipelines.report.tables.rows import method_label
from pipelines.report.tables.table import Column, Gain, Row, Table, signed

MERGED, HARC, OWN, BLOCK = "merged", "HARC", "own targets", "block repaired"
PARTLY = "router and experts repaired"
TRAINED = "router SFT"
RANDOM, SWAPPED = "random change", "domains swapped"
CONTROLS = {"random": RANDOM, "swapped": SWAPPED}  # as calibrate.control says it
EXACT = ", exact KL"
EXACT_OWN = OWN + EXACT  # what findings are about: the better objective on calibration text held out (docs/repair.md)
VARIANTS = (MERGED, RANDOM, SWAPPED, HARC, HARC + EXACT, OWN, OWN + EXACT, TRAINED, PARTLY, BLOCK)
COLOURED = {MERGED: "Individual", RANDOM: "Fisher Merging", SWAPPED: "TIES-Merging", HARC: "HARC",
            OWN: "WUDI-Merging", PARTLY: "RegMean", BLOCK: "DARE",
            TRAINED: "Weight Averaging"}  # fmt: skip
LOWERED = 0.20  # of the merged model's routing KL, beyond what HARC lowers
LOSS_LOWERED = 0.05  # of the merged model's loss
_LOSSES, _GAINS = 5, 4  # of six merges: how many intervals must exclude zero, in loss and in accuracy


@report("targets")
def targets(sweep: Sweep) -> Content:
    """Rows (method, variant); differences are from the merge as it was."""
    keys = [Column("method", "Method", kind="key"), Column("variant", "Variant", kind="key")]
    names = list(dict.fromkeys(map(method_label, sweep.cells)))
    table = setting_table(sweep.cells, keys, [(name, variant) for name in names for variant in VARIANTS], _key,
                          baseline_of=lambda key: None if key[1] == MERGED else (key[0], MERGED))  # fmt: skip
    table.columns = [replace(column, best=column.best or _BEST.get(column.name)) for column in table.columns]
    effects = {ACCURACY: accuracy_effects(table), LOSS: loss_effects(table)}
    claimed, controls = (HARC, EXACT_OWN, BLOCK), (HARC, *CONTROLS.values())
    pictures = [
        _forest("figure", "What HARC, own targets and repaired blocks give back", claimed, names, effects, sweep.scale),
        _curves(table, names, sweep.scale),
        _forest("figure_controls", "HARC beside its negative controls", controls, names, effects, sweep.scale),
    ]
    content = Content(table, pictures, _findings(table, names, effects), _facts(table, names, effects))
    content.findings_title = "Beyond the paper: what was claimed, judged here"
    content.evidence = _evidence(names, effects)
    content.notes = notes(sweep, table)
    return content


_BEST = {"routing_kl": "min", "mismatch": "min", "loss": "min"}


def _key(cell: CellRecord) -> tuple[str, ...]:
    return method_label(cell), _variant(cell)


def _variant(cell: CellRecord) -> str:
    if cell.calibrate == "repair":
        return BLOCK if "attention" in cell.setting("calibrate.parts") else PARTLY
    if cell.calibrate == "router_sft":
        return TRAINED
    if not cell.calibrated:
        return MERGED
    if cell.setting("calibrate.control") != "none":
        return CONTROLS[cell.setting("calibrate.control")]
    name = OWN if cell.setting("calibrate.target") == "source_inputs" else HARC
    return name + EXACT * (cell.setting("calibrate.objective") == "kl")


def _of(effects: dict[str, Effect], names: Sequence[str], variant: str) -> dict[str, Effect]:
    """Method -> the variant's effect, in the table's order, where it was measured."""
    found = {name: effects.get(f"{name}, {variant}") for name in names}
    return {name: effect for name, effect in found.items() if effect is not None}


def _evidence(names: Sequence[str], effects: dict[str, dict[str, Effect]]) -> Table | None:
    """Of each variant the mean over methods, the primary endpoint, and each method's effect, corrected within it."""
    rows = []
    for measure, found in effects.items():
        for variant in VARIANTS[1:]:
            of_methods = {f"{name}, {variant}": effect for name, effect in _of(found, names, variant).items()}
            rows += effect_rows(of_methods, measure, f"Mean of all methods, {variant}")
    return effects_as_table(rows)


def _forest(
    figure: str,
    title: str,
    variants: Sequence[str],
    names: Sequence[str],
    effects: dict[str, dict[str, Effect]],
    scale: str,
) -> Picture:
    """The gains of some variants, a panel for each and for loss and accuracy, a dot a method."""
    panels = []
    for variant in variants:
        for measure, axis in ((LOSS, "less loss (nats)"), (ACCURACY, "accuracy (points)")):
            found = _of(effects[measure], names, variant)
            mean = _mean(names, effects[measure], variant)
            dots = [_dot(name, name, found.get(name), "o") for name in names] + [_dot("mean", HARC, mean, "D")]
            panels.append(DotPanel(variant.removesuffix(EXACT), axis, dots, Level("as merged", "Individual", 0.0)))
    return dots_plot(
        figure, panels, title=title,
        caption=f"{'Own targets by the exact KL. ' * (EXACT_OWN in variants)}Diamonds: mean over the merging methods; "
        "bars are paired 95 % bootstrap intervals, over held-out sequences for loss and over problems for accuracy; "
        "filled where they exclude zero. Right of the line: better.",
        scale=scale, shared=True,
    )  # fmt: skip


def _dot(label: str, method: str, effect: Effect | None, marker: str) -> Dot:
    if effect is None:
        return Dot(label, method, None, marker=marker)
    gain = effect.gain
    return Dot(label, method, gain.value, gain.low, gain.high, gain.clear, marker)


def _curves(table: Table, names: Sequence[str], scale: str) -> Picture:
    panels = []
    for name in names:
        series = []
        for variant in VARIANTS:
            curve = mean_by_layer(by_domain(table.row(name, variant), "kl"))
            if curve:
                shade = COLOURED[variant.removesuffix(EXACT)]
                dashed = variant.endswith(EXACT) or variant == MERGED
                series.append(Series(variant, shade, range(1, len(curve) + 1), curve, dashed=dashed))
        panels.append(LinePanel(name, "MoE layer", series, whole=True))
    return lines_plot(
        "figure_routing_kl", panels, title="Routing KL by layer",
        caption="On held-out text, each model through its own layers; mean of the domains.",
        axis="Routing KL (nats)", scale=scale, zero=True,
    )  # fmt: skip


def _facts(table: Table, names: Sequence[str], effects: dict[str, dict[str, Effect]]) -> list[Fact]:
    facts = []
    for variant in (HARC, EXACT_OWN, BLOCK):
        fallen = [_fallen(table, name, variant, "routing_kl") for name in names]
        known = [value for value in fallen if value is not None]
        accuracy, loss = (mean_effect(list(_of(effects[measure], names, variant).values())) for measure in effects)
        said = [f"accuracy {accuracy.gain.text()} points"] if accuracy else []
        said += [f"loss {_nats(loss.gain)} nats"] if loss else []
        if known:
            label = f"{variant[0].upper()}{variant[1:]}: routing KL"
            facts.append(Fact(label, f"{signed(-100 * fmean(known), 1)} %", "; ".join(said)))
    return facts


def _nats(gain: Gain) -> str:
    """A gain in loss as a change of the loss: lower is better, with four digits."""
    return f"{signed(-gain.value, 4)} [{signed(-gain.high, 4)}, {signed(-gain.low, 4)}]"


def _value(row: Row | None, column: str) -> float | None:
    return row.values.get(column) if row else None


def _fallen(table: Table, name: str, variant: str, column: str) -> float | None:
    """By which share of the merge's value a variant's is lower."""
    before, after = _value(table.row(name, MERGED), column), _value(table.row(name, variant), column)
    return None if not before or after is None else 1 - after / before


def _findings(table: Table, names: Sequence[str], effects: dict[str, dict[str, Effect]]) -> list[Finding]:
    return [
        _routing_follows(table, names),
        _lower_loss(names, effects[LOSS]),
        _repair_lowers_loss(table, names),
        _repair_raises_accuracy(names, effects[ACCURACY]),
        _controls_do_not_help(names, effects),
        _harc_beats_controls(names, effects[LOSS]),
    ]


def _routing_follows(table: Table, names: Sequence[str]) -> Finding:
    known: dict[str, tuple[float, float]] = {}
    for name in names:
        harc, own = (_fallen(table, name, variant, "routing_kl") for variant in (HARC, EXACT_OWN))
        if harc is not None and own is not None:
            known[name] = harc, own
    below = all(own > harc for harc, own in known.values())
    beyond = fmean(own - harc for harc, own in known.values()) if known else 0.0
    shown = [
        f"{name}: HARC {signed(-100 * harc, 1)} %, own targets {signed(-100 * own, 1)} %"
        for name, (harc, own) in known.items()
    ]
    return Finding(
        "Own targets, fitted by the exact KL, lower end-to-end routing KL below HARC's for every merge, by "
        f"{100 * LOWERED:.0f} % of the merged model's on average beyond it.",
        "Routing KL on held-out text, mean over layers and domains; in direction only if it is below HARC's for every "
        "merge, but by less on average.",
        _verdict(len(known) < len(names), below and beyond >= LOWERED, below),
        f"{'; '.join(shown)}. On average {100 * beyond:.1f} % of the merged model's beyond HARC.",
    )


def _lower_loss(names: Sequence[str], losses: dict[str, Effect]) -> Finding:
    return _counted(
        f"Own targets, fitted by the exact KL, lower held-out loss for at least {_LOSSES} of {len(names)} merges.",
        _of(losses, names, EXACT_OWN), names, _LOSSES, _nats,
    )  # fmt: skip


def _repair_raises_accuracy(names: Sequence[str], accuracies: dict[str, Effect]) -> Finding:
    return _counted(
        f"Repair of the whole block raises accuracy for at least {_GAINS} of {len(names)} merges.",
        _of(accuracies, names, BLOCK), names, _GAINS, Gain.text,
    )  # fmt: skip


def _counted(
    claim: str, found: dict[str, Effect], names: Sequence[str], enough: int, text: Callable[[Gain], str]
) -> Finding:
    gains = {name: effect.gain for name, effect in found.items()}
    clear = sum(gain.low > 0 for gain in gains.values())
    better = sum(gain.value > 0 for gain in gains.values())
    verdict = _verdict(len(gains) < len(names) and clear < enough, clear >= enough, better >= enough)
    rule = (
        "Holds if the paired 95 % interval excludes zero on the better side for that many; in direction only if that "
        "many lie on that side."
    )
    return Finding(claim, rule, verdict, "; ".join(f"{name}: {text(gain)}" for name, gain in gains.items()) + ".")


def _repair_lowers_loss(table: Table, names: Sequence[str]) -> Finding:
    fallen = {name: _fallen(table, name, BLOCK, "loss") for name in names}
    known = {name: value for name, value in fallen.items() if value is not None}
    enough = all(value >= LOSS_LOWERED for value in known.values())
    verdict = _verdict(len(known) < len(names), enough, all(value > 0 for value in known.values()))
    detail = "; ".join(f"{name}: {signed(-100 * value, 1)} %" for name, value in known.items())
    return Finding(
        f"Repair of the whole block lowers the held-out loss of every merge by {100 * LOSS_LOWERED:.0f} % or more.",
        "In direction only if it is lower for every merge, but by less for some.", verdict, f"{detail}.",
    )  # fmt: skip


def _controls_do_not_help(names: Sequence[str], effects: dict[str, dict[str, Effect]]) -> Finding:
    means = {
        f"{control}, {measure}": _mean(names, found, control)
        for control in CONTROLS.values()
        for measure, found in effects.items()
    }
    known = {name: effect.gain for name, effect in means.items() if effect is not None}
    shown = [f"{name}: {_text(gain, LOSS in name)}" for name, gain in known.items()]
    helped = any(gain.low > 0 for gain in known.values())
    return Finding(
        "Neither negative control helps, in accuracy or in loss: routers changed at random by as much as HARC changes "
        "them, HARC with the domains swapped.",
        "Of each control the mean gain over all merges; does not hold if the paired 95 % interval of one of them lies "
        "above zero, which for a change that does nothing happens to one in forty.",
        FAILS if helped else OPEN if len(known) < len(means) else HOLDS, "; ".join(shown or ["Not measured"]) + ".",
    )  # fmt: skip


def _harc_beats_controls(names: Sequence[str], losses: dict[str, Effect]) -> Finding:
    harc = _mean(names, losses, HARC)
    gains: dict[str, Gain | None] = {}
    for control in CONTROLS.values():
        other = _mean(names, losses, control)
        gains[control] = None if harc is None or other is None else (harc - other).gain
    known = [gain for gain in gains.values() if gain is not None]
    return Finding(
        "HARC lowers held-out loss further than either negative control.",
        "The mean over all merges of the difference; holds if the paired 95 % interval excludes zero for both, in "
        "direction only if both lie on that side.",
        _verdict(len(known) < len(gains), all(gain.low > 0 for gain in known), all(gain.value > 0 for gain in known)),
        "; ".join(f"than {name}: {_nats(gain) if gain else 'not measured'}" for name, gain in gains.items()) + ".",
    )


def _mean(names: Sequence[str], effects: dict[str, Effect], variant: str) -> Effect | None:
    """The variant's mean effect over all methods; None where one is missing."""
    found = _of(effects, names, variant)
    return mean_effect(list(found.values())) if len(found) == len(names) else None


def _text(gain: Gain, loss: bool) -> str:
    return _nats(gain) if loss else gain.text()


def _verdict(missing: bool, holds: bool, leans: bool) -> str:
    return OPEN if missing else HOLDS if holds else LEANS if leans else FAILS
