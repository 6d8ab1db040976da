"""The rules by which findings are judged, the same for every experiment and stated on every page.

A claim about accuracy is judged by paired intervals: it holds when every difference it speaks of has an interval on the
claimed side of zero, holds in direction only when all lie on that side but some interval reaches zero, and does not
hold as soon as one difference is not on that side. A claim that could not be measured whole is undecided.
"""

from collections.abc import Mapping

from pipelines.report.registry import FAILS, HOLDS, LEANS, OPEN, Finding
from pipelines.report.tables.table import Gain, signed

FLAT = 1.0  # points: what `flat` means, here as anywhere
SIGNS = (
    "Holds if every difference has a paired 95 % interval on the claimed side of zero; “in direction only” if all lie "
    "on that side but some interval reaches zero; does not hold as soon as one does not."
)
_FLATNESS = (
    f"Holds if every value lies within {FLAT:g} point of the mean of them all, with its paired 95 % interval; “in "
    "direction only” if the values do but some interval does not; does not hold otherwise."
)


def by_sign(claim: str, differences: Mapping[str, Gain | None], *, sign: int = 1, rule: str = SIGNS) -> Finding:
    """A claim that all of these differences are above (sign 1) or below (sign -1) zero.

    Args:
        claim: in the paper's sense.
        differences: what is compared -> its paired difference, None where it was not measured.
        sign: the claimed side.
        rule: how it is judged, when SIGNS does not say it.
    """
    known = [gain for gain in differences.values() if gain is not None]
    if any(sign * gain.value <= 0 for gain in known):
        verdict = FAILS
    elif len(known) < len(differences) or not known:
        verdict = OPEN
    else:
        verdict = HOLDS if all(gain.clear for gain in known) else LEANS
    return Finding(claim, rule, verdict, _listed(differences))


def by_order(claim: str, steps: Mapping[str, bool | None], detail: str, *, rule: str) -> Finding:
    """A claim made of plain comparisons without intervals: holds when all are true; None: not measured."""
    known = [step for step in steps.values() if step is not None]
    verdict = FAILS if not all(known) else OPEN if len(known) < len(steps) or not known else HOLDS
    missing = [name for name, step in steps.items() if step is None]
    return Finding(claim, rule, verdict, detail + (f" Not measured: {', '.join(missing)}." if missing else ""))


def by_flatness(claim: str, deviations: Mapping[str, Gain | None]) -> Finding:
    """A claim that values do not depend on a setting.

    deviations: setting -> its paired difference from the mean over all settings, None where it was not measured.
    """
    known = [gain for gain in deviations.values() if gain is not None]
    if any(abs(gain.value) > FLAT for gain in known):
        verdict = FAILS
    elif len(known) < len(deviations) or not known:
        verdict = OPEN
    else:
        verdict = HOLDS if all(gain.low >= -FLAT and gain.high <= FLAT for gain in known) else LEANS
    return Finding(claim, _FLATNESS, verdict, _listed(deviations))


def _listed(differences: Mapping[str, Gain | None]) -> str:
    return "; ".join(f"{name}: {gain.text() if gain else 'not measured'}" for name, gain in differences.items()) + "."


def change(before: float, after: float) -> str:
    """A relative change in per cent, for people."""
    return f"{signed(100 * (after / before - 1), 1)} %" if before else "from zero"
