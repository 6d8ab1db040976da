import json
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from trl import SFTTrainer

from pipelines.data.tokens import IGNORED, tokenize
from pipelines.stages.finetune import finetune
from pipelines.stages.pretrain import pretrain
from pipelines.training.launch import read_job, split_batch, write_job
from pipelines.training.loop import Progress, RouterTrainer, complete_checkpoint, trainer_arguments
from pipelines.training.run import _read_template
from pipelines.training.settings import LaunchConfig, TrainConfig
from tests.pipelines.small_world import finetuning, make_tokenizer, make_world, pretraining, sums
from tests.places import ROOT


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def base(world, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("base")
    pretrain(pretraining(), {"world": world}, out)
    return out


def loss_curve(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "loss.jsonl").read_text().splitlines()]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_only_the_response_and_its_end_carry_loss():
    tokenizer = make_tokenizer()
    dataset = tokenize(tokenizer, sums(20), max_length=96)
    for record, row in zip(sums(20), dataset, strict=True):
        learned = [token for token in row["labels"] if token != IGNORED]
        assert tokenizer.decode(learned) == record["response"] + "<eos>"
        assert row["input_ids"][-len(learned) :] == learned
        assert tokenizer.decode(row["input_ids"][: -len(learned)]) == f"<user>{record['prompt']}<assistant>"


def test_labels_are_those_of_trl_for_a_prompt_and_completion_dataset(tmp_path, base):
    from datasets import Dataset

    tokenizer = make_tokenizer()
    rows = [
        {
            "prompt": [{"role": "user", "content": record["prompt"]}],
            "completion": [{"role": "assistant", "content": record["response"]}],
        }
        for record in sums(10)
    ]
    arguments = trainer_arguments(TrainConfig(steps=1, max_length=40), tmp_path)
    arguments.dataset_kwargs = None
    model = AutoModelForCausalLM.from_pretrained(base)
    prepared = SFTTrainer(model, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    ours = tokenize(tokenizer, sums(10), max_length=40)
    assert [row["labels"] for row in ours] == [row["labels"] for row in prepared.train_dataset]
    assert [row["input_ids"] for row in ours] == [row["input_ids"] for row in prepared.train_dataset]


def test_every_token_carries_loss_when_asked():
    for row in tokenize(make_tokenizer(), sums(3), max_length=96, responses_only=False):
        assert row["labels"] == row["input_ids"]


def test_every_assistant_turn_of_a_conversation_carries_loss():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = _read_template("tulu.jinja")
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "2+2?"), ("assistant", "4")]
    record = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (row,) = tokenize(tokenizer, [record], max_length=96)
    assert tokenizer.decode([token for token in row["labels"] if token != IGNORED]) == "Hello<eos>4<eos>"
    assert (
        tokenizer.decode(row["input_ids"])
        == "<|user|>\nHi\n<|assistant|>\nHello<eos>\n<|user|>\n2+2?\n<|assistant|>\n4<eos>"
    )


def test_records_without_room_for_a_response_are_left_out():
    tokenizer = make_tokenizer()
    long = {"id": "long", "prompt": "word " * 50, "response": "x"}
    assert len(tokenize(tokenizer, [*sums(3), long], max_length=60)) == 3
    with pytest.raises(ValueError, match="none of 1 training examples has a response within 60 tokens"):
        tokenize(tokenizer, [long], max_length=60)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        tokenize(tokenizer, sums(1), max_length=60)


def test_the_pretrained_checkpoint_has_the_published_layout(base, world):
    names = set(weights(base))
    assert "model.layers.1.mlp.experts.3.gate_proj.weight" in names
    assert not any("gate_up_proj" in name for name in names)
    config = AutoConfig.from_pretrained(base)
    assert config.vocab_size == len(AutoTokenizer.from_pretrained(world / "tokenizer"))
    assert (config.output_router_logits, config.router_aux_loss_coef) == (False, 0.01)
    assert AutoTokenizer.from_pretrained(base).chat_template == make_tokenizer().chat_template
    assert not (base / "trainer").exists()
    curve = loss_curve(base)
    assert [entry["step"] for entry in curve] == [1, 2, 3, 4, 5, 6]
    assert curve[-1]["loss"] < curve[0]["loss"]


def test_load_balancing_is_on_in_pretraining_and_off_in_finetuning(base, world, tmp_path):
    assert all(entry["aux_loss"] >= 1.9 for entry in loss_curve(base))  # top_k when the load is even
    metrics = finetune(finetuning(), {"world": world, "base": base}, tmp_path)
    assert all("aux_loss" not in entry for entry in loss_curve(tmp_path))
    assert metrics["steps"] == 4
    assert metrics["tokens_with_loss"] < metrics["tokens"]


@pytest.mark.parametrize("coefficient", [0.0, 0.5])
def test_the_cpu_loss_equals_trl_s(base, tmp_path, coefficient):
    tokenizer = make_tokenizer()
    dataset = tokenize(tokenizer, sums(8), max_length=96)
    settings = TrainConfig(steps=1, batch_size=8, max_length=96, load_balancing=coefficient)
    model = AutoModelForCausalLM.from_pretrained(base)
    trainer = RouterTrainer(
        model, trainer_arguments(settings, tmp_path), train_dataset=dataset, processing_class=tokenizer
    )
    trainer.current_gradient_accumulation_steps = 2
    batch = trainer.data_collator([{**row} for row in dataset])
    count = (batch["labels"][:, 1:] != IGNORED).sum()
    theirs = SFTTrainer.compute_loss(trainer, trainer.model, dict(batch), num_items_in_batch=count)
    ours = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    theirs.backward()
    gradient = model.get_input_embeddings().weight.grad.clone()
    model.zero_grad()
    ours.backward()
    torch.testing.assert_close(model.get_input_embeddings().weight.grad, gradient, rtol=1e-4, atol=1e-6)


def test_a_seed_decides_the_result(base, world, tmp_path):
    inputs = {"world": world, "base": base}
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        finetune(finetuning(seed=seed), inputs, tmp_path / name)
    assert same(tmp_path / "one", tmp_path / "again")
    assert not same(tmp_path / "one", tmp_path / "other")


def test_the_global_batch_does_not_depend_on_its_division(base, world, tmp_path):
    inputs = {"world": world, "base": base}
    finetune(finetuning(), inputs, tmp_path / "whole")
    finetune(finetuning(micro_batch_size=2), inputs, tmp_path / "accumulated")
    losses = [[entry["loss"] for entry in loss_curve(tmp_path / name)] for name in ("whole", "accumulated")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_packed_documents_do_not_see_each_other(base, tmp_path):
    tokenizer = make_tokenizer()
    dataset = tokenize(tokenizer, sums(6), max_length=256)
    settings = TrainConfig(steps=1, batch_size=1, max_length=256, packing=True)
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    trainer = RouterTrainer(
        model, trainer_arguments(settings, tmp_path), train_dataset=dataset, processing_class=tokenizer
    )
    assert len(trainer.train_dataset) < 6
    packed = trainer.data_collator([{**trainer.train_dataset[0]}])
    ids, labels = packed["input_ids"][0], packed["labels"][0]
    positions = packed["position_ids"][0]
    starts = [*torch.nonzero(positions == 0).flatten().tolist(), len(ids)]
    assert len(starts) > 2
    with torch.no_grad():
        whole = model(input_ids=packed["input_ids"], position_ids=packed["position_ids"]).logits[0]
        for start, end in pairwise(starts):
            alone = model(input_ids=ids[None, start:end]).logits[0]
            torch.testing.assert_close(whole[start:end], alone, rtol=1e-4, atol=1e-4)
            assert (labels[start:end] != IGNORED).any()


def test_a_damaged_base_stops_with_the_step(base, world, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in base.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    tensors = weights(base)
    tensors["model.layers.0.self_attn.q_proj.weight"][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        finetune(finetuning(), {"world": world, "base": broken}, tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_bad_settings_are_refused_before_any_work(base, world, tmp_path):
    with pytest.raises(ValueError, match="set either steps or epochs, found steps=None, epochs=None"):
        finetune(finetuning(steps=None), {"world": world, "base": base}, tmp_path / "a")
    with pytest.raises(ValueError, match="batch_size 8 is not a multiple of 1 processes x micro_batch_size 3"):
        finetune(finetuning(micro_batch_size=3), {"world": world, "base": base}, tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="no such base checkpoint"):
        finetune(finetuning(), {"world": world, "base": tmp_path / "none"}, tmp_path / "c")
    config = pretraining()
    config.architecture.settings = {**config.architecture.settings, "hidden": 3}
    with pytest.raises(ValueError, match="olmoe: unknown architecture settings hidden"):
        pretrain(config, {"world": world}, tmp_path / "d")


def test_batches_are_divided_evenly():
    assert split_batch(32, None, 4) == (8, 1)
    assert split_batch(32, 2, 4) == (2, 4)
    with pytest.raises(ValueError, match="not a multiple of 3 processes"):
        split_batch(32, None, 3)


def test_a_job_comes_back_as_it_was_and_another_one_starts_afresh(tmp_path):
    work = tmp_path / "trainer"
    write_job(work, "finetune", finetuning(), {"base": tmp_path})
    (work / "checkpoint-2").mkdir()
    write_job(work, "finetune", finetuning(), {"base": tmp_path})
    assert (work / "checkpoint-2").exists()
    assert read_job(work) == ("finetune", finetuning(), {"base": tmp_path})
    write_job(work, "finetune", finetuning(seed=9), {"base": tmp_path})
    assert not (work / "checkpoint-2").exists()


def test_half_a_checkpoint_is_not_resumed_from(tmp_path):
    for step, complete in ((2, True), (4, True), (10, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if complete:
            (tmp_path / f"checkpoint-{step}" / "complete").touch()
    assert complete_checkpoint(tmp_path) == tmp_path / "checkpoint-4"


RESUMED = {"steps": 60, "save_steps": 5}

CHILD = """
import sys
from pathlib import Path
from pipelines.stages.finetune import finetune
from tests.pipelines.small_world import finetuning
world, base, out = map(Path, sys.argv[1:])
finetune(finetuning(steps=60, save_steps=5), {"world": world, "base": base}, out)
"""


def wait_for(condition, seconds: float = 1200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_training_ends_as_an_unbroken_one(base, world, tmp_path):
    out, unbroken = tmp_path / "out", tmp_path / "unbroken"
    arguments = [sys.executable, "-c", CHILD, str(world), str(base), str(out)]
    child = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: complete_checkpoint(out / "trainer") or child.poll() is not None)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == -signal.SIGKILL
    reached = int(complete_checkpoint(out / "trainer").name.split("-")[1])
    assert not (out / "model.safetensors").exists()

    inputs = {"world": world, "base": base}
    resumed = finetune(finetuning(**RESUMED), inputs, out)
    whole = finetune(finetuning(**RESUMED), inputs, unbroken)
    assert 0 < reached < 60
    assert resumed["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert [entry["step"] for entry in loss_curve(out)] == list(range(1, 61))
    first, second = weights(out), weights(unbroken)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-6)


class Killed(Exception):
    pass


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(base, world, tmp_path, monkeypatch):
    inputs = {"world": world, "base": base}
    settings = {"steps": 12, "save_steps": 4}
    whole = finetune(finetuning(**settings), inputs, tmp_path / "whole")

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 10:
            raise Killed

    monkeypatch.setattr(Progress, "on_step_end", stop)
    with pytest.raises(Killed):
        finetune(finetuning(**settings), inputs, tmp_path / "out")
    monkeypatch.undo()
    assert complete_checkpoint(tmp_path / "out" / "trainer").name == "checkpoint-8"
    resumed = finetune(finetuning(**settings), inputs, tmp_path / "out")
    assert resumed["steps"] == whole["steps"] == 12
    assert loss_curve(tmp_path / "out") == loss_curve(tmp_path / "whole")
    assert same(tmp_path / "out", tmp_path / "whole")


def test_no_checkpoint_is_written_at_the_last_step(base, world, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.training.run.shutil.rmtree", lambda path: None)
    finetune(finetuning(steps=4, save_steps=2), {"world": world, "base": base}, tmp_path)
    assert [path.name for path in (tmp_path / "trainer").glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.slow
def test_two_processes_train_as_one(base, world, tmp_path):
    inputs = {"world": world, "base": base}
    settings = {"load_balancing": 0.0, "steps": 6}
    one = finetune(finetuning(**settings), inputs, tmp_path / "one")
    two = finetune(finetuning(**settings), inputs, tmp_path / "two", launch=LaunchConfig(processes=2))
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert weights(tmp_path / "two").keys() == weights(tmp_path / "one").keys()
    with pytest.raises(RuntimeError, match=r"training in 2 processes failed .*FileNotFoundError"):
        finetune(finetuning(), {"world": world / "none", "base": base}, tmp_path / "bad", LaunchConfig(processes=2))
