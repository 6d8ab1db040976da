"""The diagnose stage is harc.diagnose on the domains' held-out text, by name and with its means."""

import json

import pytest

import harc
from harc.tokens import encode
from pipelines.data.source import DataSource
from pipelines.stages.diagnose import MEANS, DiagnoseConfig, diagnose
from tests.harc.tiny_models import family
from tests.pipelines.small_world import make_tokenizer, sums, write_jsonl


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Merged model and sources, two domains' records, and what the stage wrote and returned."""
    folder = tmp_path_factory.mktemp("diagnose")
    tokenizer = make_tokenizer()
    merged, math, code = family("olmoe", folder, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(math)
    records = {"math": sums(20), "code": [*sums(35)[20:], {**sums(1)[0], "response": None}]}
    heldout = {
        name: DataSource(path=str(write_jsonl(folder / f"{name}.jsonl", rows))) for name, rows in records.items()
    }
    config = DiagnoseConfig(sources={"math": None, "code": None}, heldout=heldout, max_length=256, dtype="float32")
    returned = diagnose(config, {"model": merged, "source_math": math, "source_code": code}, folder)
    report = harc.diagnose(merged, [math, code], [encode(tokenizer, rows, 256) for rows in records.values()])
    return returned, json.loads((folder / "routing.json").read_text()), report.to_dict(), records


def test_the_report_is_given_by_domain(made):
    returned, written, report, _ = made
    for name, values in report.items():
        if name != "layers":
            assert returned[name] == {"math": values[0], "code": values[1]}
    assert written["loss_by_sequence"] == returned["loss_by_sequence"]
    assert written["layers"] == report["layers"]


def test_every_sequence_has_its_loss_and_tokens(made):
    returned, _, _, records = made
    for name in ("loss_by_sequence", "source_loss_by_sequence", "output_kl_by_sequence", "response_tokens"):
        assert {domain: len(values) for domain, values in returned[name].items()} == {
            domain: len(rows) for domain, rows in records.items()
        }
    assert min(returned["response_tokens"]["math"]) > 5


def test_means_are_over_layers_then_domains(made):
    returned, _, report, _ = made
    for name in MEANS:
        assert f"{name}_mean" in returned
    assert returned["kl_same_mean"] == pytest.approx(sum(sum(layers) / 3 for layers in report["kl_same"].values()) / 2)
    assert returned["loss_mean"] == pytest.approx((report["loss"][0] + report["loss"][1]) / 2)
