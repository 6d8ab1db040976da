"""The doctor: what it reads off measurements, held against worked examples; and one examination as a user runs it."""

import json
import sys

import numpy as np
import pytest
import torch

from harc.attribution import Attribution
from harc.tokens import TokenSequence
from pipelines.cli import main
from pipelines.tools.doctor.examination import Examination, Trial, cost, merged, routing, source
from pipelines.tools.doctor.lost_responses import kept_of, lost_of
from pipelines.tools.doctor.token_kinds import kind_of, kinds_of
from tests.pipelines.small_world import make_tokenizer
from tests.pipelines.tools.test_own_merge import merge

__all__ = ["merge"]  # a fixture


def part(count: int = 40, *, merging: float = 0.2, routed: float = 0.1, seed: int = 0) -> Attribution:
    """A domain in which merging costs `merging` a token and replayed routing takes `routed` off."""
    generator = torch.Generator().manual_seed(seed)
    own = 1 + torch.rand(count, generator=generator, dtype=torch.float64)
    noise = 0.01 * torch.randn(count, generator=generator, dtype=torch.float64)
    tokens = torch.full((count,), 4)
    return Attribution(
        [0, 2], torch.zeros(2, 6 * count, dtype=torch.bool), [6 * i for i in range(count)], tokens,
        own, own + merging + noise, own + merging - routed + noise, own + routed, tokens, tokens, tokens,
    )  # fmt: skip


def trial(name: str, parts: list[Attribution], gains: list[float]) -> Trial:
    losses = [p.merged.numpy() - gain for p, gain in zip(parts, gains, strict=True)]
    return Trial(name, f"calibrate={name}", losses, 0.0, 0.0, 1.0, 1.0, 100)


def test_parts_and_intervals_are_those_of_the_worked_example():
    exam = Examination(["a", "b"], [part(), part(seed=1)], [])
    assert exam.loss(routing).value == pytest.approx(0.1, abs=1e-9)
    paid = exam.difference(merged, source)
    assert paid.low < paid.value < paid.high and paid.value == pytest.approx(exam.loss(cost).value)
    share = exam.share()
    assert share.low < share.value < share.high and share.value == pytest.approx(0.1 / paid.value)
    assert exam.difference(source, source).high == 0


def test_an_interval_of_losses_is_the_textbooks_for_many_conversations():
    one = part(2000)
    found = Examination(["a"], [one], []).loss(source)
    half = 1.96 * float(one.source.std()) / np.sqrt(2000)
    assert found.high - found.value == pytest.approx(half, rel=0.05)


def test_the_cheapest_remedy_that_none_clearly_beats_is_recommended():
    parts = [part(), part(seed=1)]
    cheap, better, best = (trial(n, parts, [g, g]) for n, g in (("cheap", 0.01), ("better", 0.1), ("best", 0.1)))
    assert Examination(["a", "b"], parts, [cheap, better, best]).recommend().command == "calibrate=better"
    assert Examination(["a", "b"], parts, [best, cheap]).recommend().command == "calibrate=best"


@pytest.mark.parametrize(
    ("parts", "gains", "said"),
    [
        ([part(5), part()], [0.1, 0.1], "fewer than 10 held-out conversations (a: 5)"),
        ([part(merging=0.0), part(merging=-0.1)], [0.1, 0.1], "Nothing to give back"),
        ([part(), part(seed=1)], [-0.1, -0.1], "no remedy lowers"),
        ([part(), part(seed=1)], [0.2, -0.05], "no remedy lowers"),  # it harms a domain
    ],
)
def test_nothing_is_recommended_without_evidence(parts, gains, said):
    found = Examination(["a", "b"], parts, [trial("x", parts, gains)]).recommend()
    assert found.command is None and said in found.text and found.evidence


@pytest.mark.parametrize(
    ("text", "kind"), [(" the", "words"), ("42", "digits"), ("\n ", "spaces"), ("):", "symbols"), ("x1", "digits")]
)
def test_the_kind_of_a_token(text, kind):
    assert kind_of(text) == kind


def test_every_token_is_of_one_part_and_one_kind():
    tokenizer = make_tokenizer()
    ids = torch.tensor(tokenizer("<user>What is 7?\n<assistant>7 + 1 = 8<eos>")["input_ids"])
    found = kinds_of(tokenizer, [TokenSequence(ids, 5), TokenSequence(ids, 4)])
    assert torch.equal(found["prompt"].long() + found["response"].long(), torch.ones(2 * len(ids), dtype=torch.long))
    kinds = torch.stack([found[kind] for kind in ("words", "digits", "symbols", "spaces", "special")])
    assert (
        (kinds.sum(0) == 1).all()
        and int(found["special"].sum()) == 6
        and int(found["response"].sum()) == 2 * len(ids) - 9
    )


def test_a_lost_response_is_where_text_and_routing_left():
    tokenizer = make_tokenizer()
    ids = torch.tensor(tokenizer("<user>7<assistant>8 + 1<eos>")["input_ids"])
    sequence = TokenSequence(ids, 3)
    count = len(ids) - 3
    mismatch = torch.zeros(2, 2 * len(ids), dtype=torch.bool)
    mismatch[1, len(ids) + 1] = True
    whole, zero = torch.tensor([count, count]), torch.zeros(2)
    found = Attribution(
        [0, 2], mismatch, [0, len(ids)], whole, zero, zero, zero, zero,
        whole, torch.tensor([count, 2]), torch.tensor([count, count]),
    )  # fmt: skip
    [lost] = lost_of("math", found, [sequence, sequence], tokenizer)
    assert (lost.left_at, lost.routed_at, lost.layer, lost.routed) == (2, 1, 2, True)
    assert lost.flipped == pytest.approx(1 / (2 * 5)) and lost.token == tokenizer.decode(ids[5:6])
    assert vars(kept_of(found)) == {"responses": 2, "by_source": 2, "by_merged": 1, "by_routed": 2}


def test_an_examination_leaves_a_page_and_a_record_and_nothing_else(merge, tmp_path, monkeypatch):
    given = {
        "sources": "[" + ",".join(map(str, merge["sources"])) + "]",
        "data": "[" + ",".join(map(str, merge["data"])) + "]",
        "out": str(tmp_path / "page"),
        "outputs": str(tmp_path / "o"),
        "hydra.run.dir": str(tmp_path / "h"),
        "cut": "300",
    }
    monkeypatch.setattr(sys, "argv", ["run.py", "+experiment=doctor", *(f"{k}={v}" for k, v in given.items())])
    assert main() == 0
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == ["doctor.html", "doctor.json"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [".claims"]
    record = json.loads((tmp_path / "page" / "doctor.json").read_text())
    mean = {name: record[name]["mean"]["value"] for name in ("cost", "routing", "weights")}
    assert mean["routing"] + mean["weights"] == pytest.approx(mean["cost"])
    assert len(record["remedies"]) == 4 and record["recommendation"]["evidence"]
    page = (tmp_path / "page" / "doctor.html").read_text()
    assert "Where routing flips" in page and "http" not in page.replace("http://www.w3.org", "")
