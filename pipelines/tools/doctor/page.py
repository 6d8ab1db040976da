"""The doctor's page: figures, tables, and what they show in words."""

from statistics import fmean

from pipelines.report.figures.dots import Dot, DotPanel, dots_plot
from pipelines.report.figures.heat import Heat, heat_plot
from pipelines.report.figures.style import Picture
from pipelines.report.registry import Fact
from pipelines.report.writers.sheet import Grid, Point, Sheet
from pipelines.tools.doctor.examination import (
    Examination,
    Trial,
    merged,
    routing,
    source,
    weights,
)
from pipelines.tools.doctor.record import MODELS, Findings
from pipelines.tools.doctor.token_kinds import KINDS

_SHOWN = 20


def sheet_of(found: Findings, files: list[str]) -> Sheet:
    """The page."""
    exam = found.exam
    return Sheet(
        "doctor",
        f"Examination of {found.merged.rstrip('/').rpartition('/')[2]}",
        True if found.advice.command else None,
        ("Recommended: " if found.advice.command else "") + found.advice.text,
        [("merge", found.merged), *(("source", one) for one in found.sources), *(("text", one) for one in found.data)],
        _facts(found),
        [Point("open", "evidence", f"{line[0].upper()}{line[1:]}.") for line in found.advice.evidence]
        + [Point("bad", "refused", line) for line in found.refused],
        [_mismatch(found), _losses(exam)],
        [_remedies(found), _by_domain(exam), _lost(found)],
        _notes(found),
        files,
    )


def _facts(found: Findings) -> list[Fact]:
    exam = found.exam
    cost, held = exam.difference(merged, source), exam.loss(routing)
    flipped = fmean(float(part.mismatch.double().mean()) for part in exam.parts)
    share = exam.share()
    facts = [
        Fact("Merging costs", f"{cost.value:.4f}", f"nats a token, 95 % [{cost.low:.4f}, {cost.high:.4f}]"),
        Fact(
            "Held by the routing",
            f"{held.value:.4f}" if share is None else f"{100 * share.value:.0f} %",
            f"{held.value:.4f} [{held.low:.4f}, {held.high:.4f}] nats a token"
            + ("" if share is None else f"; share 95 % [{100 * share.low:.0f}, {100 * share.high:.0f}] %"),
        ),
        Fact("Decisions that flip", f"{100 * flipped:.1f} %", "of all tokens and layers, mean of the domains"),
    ]
    own, kept, routed = (
        sum(getattr(one, key) for one in found.kept) for key in ("by_source", "by_merged", "by_routed")
    )
    if own:
        facts.append(
            Fact(
                "Responses lost",
                f"{own - kept} of {own}",
                f"that the sources write greedily; routed as the sources, the merge loses {own - routed}",
            )
        )
    return facts


def _mismatch(found: Findings) -> Picture:
    exam = found.exam
    layers = exam.parts[0].layers
    names = [str(layer) for layer in layers]
    panels = [
        Heat(
            "By domain",
            exam.domains,
            names,
            [[100 * v for v in part.mismatch.double().mean(1).tolist()] for part in exam.parts],
        )
    ]
    rows, values = [], []
    for kind in KINDS:
        known = [one for one in (kinds[kind] for kinds in found.kinds) if one is not None]
        if known:
            rows.append(kind)
            values.append([100 * fmean(column) for column in zip(*known, strict=True)])
    panels.append(Heat("By kind of token", rows, names, values))
    return heat_plot(
        "mismatch",
        panels,
        title="Where routing flips",
        caption="Share of held-out tokens for which the merge chooses other experts than the domain's source, each on "
        "its own hidden states. By kind: the mean of the domains.",
        axis="mismatched (%)",
        columns="layer",
        digits=0,
    )


def _losses(exam: Examination) -> Picture:
    dots = []
    for name, of in MODELS:
        one = exam.loss(of)
        method = "Individual" if of is source else "WUDI-Merging"
        dots.append(Dot(name, method, one.value, one.low, one.high, of is merged))
    for trial in exam.trials:
        one, gain = exam.loss(trial), exam.gain(trial)
        clear = gain.low > 0 or gain.high < 0
        mark = f"{-gain.value:+.4f}{'*' if clear else ''}".replace("-", "−")
        dots.append(Dot(trial.name, "Weight Averaging", one.value, one.low, one.high, mark=mark, strong=clear))
    return dots_plot(
        "losses",
        [DotPanel("Held-out loss", "loss (nats a token)", dots)],
        title="What merging costs, and what gives it back",
        caption="Held-out loss, mean of the domains, with 95 % intervals over conversations. Beside each remedy, tried "
        "on a cut of the text: its paired difference from the merge; * clear of zero for all remedies at once. Two "
        "rows' intervals may overlap although their paired difference is clear: conversations differ more than models.",
        scale=f"{sum(len(part.tokens) for part in exam.parts)} held-out conversations",
        columns=1,
        width=4.6,
    )


def _remedies(found: Findings) -> Grid:
    exam = found.exam
    rows = [
        ["merge as it is", exam.loss(merged).text(signed=False), "", "–", _percent(_flipped(exam)), "", "", ""],
        *(_remedy(exam, trial, found.fit_tokens) for trial in exam.trials),
    ]
    return Grid(
        "Remedies, each tried",
        ["Remedy", "Loss", "Takes off", "Routing KL", "Mismatched", "Seconds", "For all the text", "Peak memory, GB"],
        rows,
        [
            f"Fitted to {exam.trials[0].tokens if exam.trials else 0:,} tokens, measured on {found.held_tokens:,} "
            f"others. “Takes off” holds at 95 % for all remedies at once. Seconds for all {found.fit_tokens:,} tokens "
            "that were not held out: in proportion to the tokens. Memory is the process's, Python included.",
        ],
    )


def _remedy(exam: Examination, trial: Trial, tokens: int) -> list[str]:
    whole = trial.seconds * max(1.0, tokens / max(trial.tokens, 1))
    return [
        trial.name,
        exam.loss(trial).text(signed=False),
        exam.gain(trial).text(),
        f"{trial.kl:.4f}",
        _percent(trial.mismatch),
        f"{trial.seconds:.1f}",
        f"{whole:.0f} s" if whole < 600 else f"{whole / 60:.0f} min",
        f"{trial.memory_gb:.2f}",
    ]


def _by_domain(exam: Examination) -> Grid:
    rows: list[list[str]] = []
    for index, name in [*enumerate(exam.domains), (None, "mean")]:
        values = [exam.loss(of, index) for _, of in MODELS]
        parts = [exam.difference(merged, source, index), exam.loss(routing, index), exam.loss(weights, index)]
        rows.append([name, *(f"{one.value:.4f}" for one in values), *(one.text() for one in parts)])
    return Grid(
        "What merging costs, by domain",
        ["Domain", *(name for name, _ in MODELS), "Cost", "Routing's part", "Weights' part"],
        rows,
        [
            "Routing's part: ½ [(L(merge) − L(merge, routed as the source)) + (L(source, routed as the merge) − "
            "L(source))]; the weights' is the rest. Routing is not the routers alone: drifted hidden states flip good "
            "routers too, and better experts mend routing."
        ],
    )


def _lost(found: Findings) -> Grid:
    rows = [
        [
            one.prompt,
            one.domain,
            str(one.left_at + 1),
            repr(one.token),
            "never" if one.routed_at is None else f"{one.routed_at + 1} ({one.routed_token!r}), layer {one.layer}",
            _percent(one.flipped),
            "yes" if one.routed else "no",
        ]
        for one in found.lost[:_SHOWN]
    ]
    heads = [
        "Prompt",
        "Domain",
        "Left at response token",
        "Not written",
        "Routing left at token",
        "Flipped until then",
        "Back when routed as the source",
    ]
    more = f"{len(found.lost) - _SHOWN} more are in doctor.json. " if len(found.lost) > _SHOWN else ""
    return Grid(
        f"Responses that merging lost ({len(found.lost)})",
        heads,
        rows,
        [
            f"{more}A response is lost when the source writes it by greedy decoding and the merge does not. Tokens "
            "count from 1."
        ],
    )


def _notes(found: Findings) -> list[str]:
    return [
        f"{found.held_tokens:,} tokens were held out; {found.fit_tokens:,} were not.",
        "Losses are of the responses. Domains weigh the same, conversations by their predicted tokens.",
        "Layers count from 0.",
    ]


def _flipped(exam: Examination) -> float:
    return fmean(float(part.mismatch.double().mean()) for part in exam.parts)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
