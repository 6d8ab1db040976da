"""What the doctor found out, its intervals, and what follows from them.

Losses are nats a token of the held-out responses, each domain's mean weighing the same. Intervals are paired bootstraps
over the held-out conversations; of the four remedies, gains are read off intervals that hold for all four at once
(Bonferroni), since the best of them is chosen on the same text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import numpy as np

from eval.statistics import interval, mean_of, resampled_means
from harc.attribution import Attribution

FEWEST = 10  # held-out conversations of a domain below which nothing is recommended

Losses = Sequence[np.ndarray]  # of each domain's sequences
Value = Callable[[Attribution], Any]

source: Value = attrgetter("source")
merged: Value = attrgetter("merged")
merged_routed: Value = attrgetter("merged_routed")
source_routed: Value = attrgetter("source_routed")
cost: Value = attrgetter("cost")
routing: Value = attrgetter("routing")
weights: Value = attrgetter("weights")


@dataclass(frozen=True)
class Interval:
    """A value with its bounds."""

    value: float
    low: float
    high: float

    def text(self, *, signed: bool = True) -> str:
        """As printed. signed: a difference, whose plus is written as well."""
        value, low, high = (f"{one:{'+' if signed else ''}.4f}" for one in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]".replace("-", "−")


@dataclass(frozen=True)
class Trial:
    """A remedy that was tried on a cut of the text.

    command: what it is called on the command line. losses: of each domain's held-out sequences; kl, mismatch: means of
    layers and domains. seconds, memory_gb: what it took on `tokens` tokens.
    """

    name: str
    command: str
    losses: Losses
    kl: float
    mismatch: float
    seconds: float
    memory_gb: float
    tokens: int


@dataclass(frozen=True)
class Recommendation:
    """command: the remedy, None for none; text: what was concluded; evidence: what from."""

    command: str | None
    text: str
    evidence: list[str] = field(default_factory=list)


class Examination:
    """The measurements, and estimates from them.

    Attributes: domains (their names); parts (an Attribution a domain); trials, from the cheapest to the dearest.
    """

    def __init__(
        self, domains: Sequence[str], parts: Sequence[Attribution], trials: Sequence[Trial], seed: int = 0
    ) -> None:
        self.domains, self.parts, self.trials, self._seed = list(domains), list(parts), list(trials), seed

    def loss(self, of: Value | Trial, domain: int | None = None, level: float = 0.95) -> Interval:
        """A mean loss, of all domains or of one."""
        return self._estimate([self._values(of, index) for index in range(len(self.parts))], domain, level)

    def difference(
        self,
        of: Value | Trial,
        other: Value | Trial,
        domain: int | None = None,
        level: float = 0.95,
    ) -> Interval:
        """How much more the one loses than the other, paired by conversation."""
        values = [self._values(of, i) - self._values(other, i) for i in range(len(self.parts))]
        return self._estimate(values, domain, level)

    def share(self) -> Interval | None:
        """The routing's share of what merging costs; None where the cost is not clearly above zero."""
        if self.difference(merged, source).low <= 0:
            return None
        draws = [
            self._draws(np.stack([self._values(o, i) for o in (routing, cost)], 1), i) for i in range(len(self.parts))
        ]
        both = mean_of(draws)
        means = [
            float(np.mean([self._mean(self._values(of, i), i) for i in range(len(self.parts))]))
            for of in (routing, cost)
        ]
        return Interval(means[0] / means[1], *interval(both[:, 0] / both[:, 1]))

    @property
    def level(self) -> float:
        """The level of each interval at which all gains of trials together have 95 %."""
        return 1 - 0.05 / max(1, len(self.trials))

    def gain(self, trial: Trial, domain: int | None = None) -> Interval:
        """How much of the loss a trial takes off the merge, at `level`."""
        return self.difference(merged, trial, domain, self.level)

    def recommend(self) -> Recommendation:
        """The cheapest of the remedies that no other clearly beats, if it clearly helps and clearly harms no domain."""
        few = [
            f"{name}: {len(part.tokens)}"
            for name, part in zip(self.domains, self.parts, strict=True)
            if len(part.tokens) < FEWEST
        ]
        paid = self.difference(merged, source)
        evidence = [f"merging costs {paid.text()} nats a token (95 %)"]
        if few:
            text = f"No recommendation: fewer than {FEWEST} held-out conversations ({', '.join(few)}). Give more text."
            return Recommendation(None, text, evidence)
        if paid.low <= 0:
            return Recommendation(
                None, "Nothing to give back: on this text, no cost of merging can be told from none.", evidence
            )
        helping = []
        for trial in self.trials:
            gained = self.gain(trial)
            harmed = [n for i, n in enumerate(self.domains) if self.gain(trial, i).high < 0]
            said = f"; worse on {', '.join(harmed)}" if harmed else ""
            evidence.append(f"{trial.name} takes off {gained.text()}{said} ({self._at_once()})")
            if gained.low > 0 and not harmed:
                helping.append(trial)
        if not helping:
            return Recommendation(
                None, "No recommendation: no remedy lowers held-out loss beyond its interval.", evidence
            )
        best = min(helping, key=lambda trial: self.loss(trial).value)
        chosen = next(one for one in helping if one is best or self.difference(one, best, level=self.level).low <= 0)
        if chosen is not best:
            evidence.append(f"{best.name} is not clearly better than {chosen.name}, which is cheaper")
        gained = self.gain(chosen)
        back = 100 * gained.value / paid.value
        text = (
            f"{chosen.name} ({chosen.command}): it gives back {gained.value:.4f} nats a token "
            f"[{gained.low:.4f}, {gained.high:.4f}], {back:.0f} % of what merging costs."
        )
        return Recommendation(chosen.command, text, evidence)

    def _at_once(self) -> str:
        return f"95 % for all {len(self.trials)} at once"

    def _values(self, of: Value | Trial, index: int) -> np.ndarray:
        found = of.losses[index] if isinstance(of, Trial) else of(self.parts[index])
        return np.asarray(found, dtype=float)

    def _estimate(self, values: Losses, domain: int | None, level: float) -> Interval:
        chosen = range(len(values)) if domain is None else [domain]
        draws = mean_of([self._draws(values[i][:, None], i) for i in chosen])[:, 0]
        return Interval(float(np.mean([self._mean(values[i], i) for i in chosen])), *interval(draws, level))

    def _draws(self, values: np.ndarray, index: int) -> np.ndarray:
        weights = self.parts[index].tokens.numpy()
        return resampled_means(values, stratum=("doctor", index), weights=weights, seed=self._seed)

    def _mean(self, values: np.ndarray, index: int) -> float:
        return float(np.average(values, weights=self.parts[index].tokens.numpy()))
