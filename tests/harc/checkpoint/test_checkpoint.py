import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from harc.checkpoint import (
    CheckpointError,
    CheckpointWriter,
    atomic_directory,
    check_finite,
    check_sources,
    copy_extras,
    open_checkpoint,
    replace_tensors,
)

CONFIG = {"model_type": "olmoe", "architectures": ["OlmoeForCausalLM"], "vocab_size": 12, "hidden_size": 6}
NAMES = [f"model.layers.{layer}.w.weight" for layer in range(12)] + ["model.embed_tokens.weight", "lm_head.weight"]


def tensors(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(12, 6, generator=generator).to(dtype) for name in NAMES}


def save(folder: Path, content: dict[str, torch.Tensor], *, shards: int = 1, config: dict = CONFIG) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": []}))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    if shards == 1:
        save_file(content, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(content)}
    for file in set(weight_map.values()):
        save_file({n: t for n, t in content.items() if weight_map[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reads_tensors_and_rows_of_single_and_sharded_checkpoints(tmp_path, shards, dtype):
    content = tensors(dtype=dtype)
    checkpoint = open_checkpoint(save(tmp_path / "m", content, shards=shards))
    assert list(checkpoint)[:3] == ["lm_head.weight", "model.embed_tokens.weight", "model.layers.0.w.weight"]
    assert list(checkpoint).index("model.layers.10.w.weight") > list(checkpoint).index("model.layers.2.w.weight")
    for name, tensor in content.items():
        assert torch.equal(checkpoint.read(name), tensor) and checkpoint.read(name).dtype == dtype
        assert torch.equal(checkpoint.read_rows(name, 3, 7), tensor[3:7])
    check_finite(checkpoint)
    with pytest.raises(CheckpointError, match="no tensor named nope"):
        checkpoint.read("nope")


def test_pickled_weights_are_refused(tmp_path):
    folder = save(tmp_path / "m", tensors())
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*never opened"):
        open_checkpoint(folder)


def test_missing_and_truncated_shards_are_named(tmp_path):
    folder = save(tmp_path / "m", tensors(), shards=3)
    shard = folder / "model-00002-of-00003.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-20])
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003.*truncated inside tensor model\.layers"):
        open_checkpoint(folder)
    shard.write_bytes(content[:30])
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003.*truncated"):
        open_checkpoint(folder)
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003.*shard is missing"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json: No such file"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda f: (f / "model.safetensors").write_bytes(b"12"), "truncated or no safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes((9).to_bytes(8, "little") + b"x" * 99), "header is damaged"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights: expected model.safetensors"),
        (lambda f: (f / "model.safetensors").rename(f / "model-00001-of-00002.safetensors"), "but neither"),
    ],
)
def test_damaged_folders_get_one_clear_line(tmp_path, damage, message):
    folder = save(tmp_path / "m", tensors())
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


def test_index_naming_a_tensor_its_shard_lacks_is_refused(tmp_path):
    folder = save(tmp_path / "m", tensors(), shards=2)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"tensor ghost is missing"):
        open_checkpoint(folder)
    content["weight_map"]["ghost"] = "../model.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="not a file name inside the folder"):
        open_checkpoint(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        open_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, c: t.pop("lm_head.weight"), r"tensor lm_head\.weight is missing \(in all 1\)"),
        (lambda t, c: t.update(extra=torch.ones(2)), r"model\.safetensors: tensor extra is extra"),
        (lambda t, c: t.update({NAMES[3]: torch.ones(12, 5)}), r"layers\.3\.w\.weight has shape \(12, 5\), \(12, 6\)"),
        (lambda t, c: c.update(model_type="mixtral"), r"config\.json: model_type is 'mixtral', 'olmoe'"),
        (lambda t, c: c.update(vocab_size=13), "vocab_size is 13, 12"),
    ],
)
def test_sources_that_do_not_match_are_refused(tmp_path, change, message):
    base = open_checkpoint(save(tmp_path / "base", tensors()))
    content, config = tensors(1), dict(CONFIG)
    change(content, config)
    other = open_checkpoint(save(tmp_path / "other", content, config=config))
    with pytest.raises(CheckpointError, match=message):
        check_sources(base, [other])


def test_tokenizers_that_number_tokens_differently_are_refused(tmp_path):
    base = open_checkpoint(save(tmp_path / "base", tensors()))
    other = open_checkpoint(save(tmp_path / "other", tensors()))
    tokenizer = other.folder / "tokenizer.json"
    tokenizer.write_text(json.dumps({"model": {"vocab": {"a": 1, "b": 0}}}))
    with pytest.raises(CheckpointError, match="token 'a' has id 1, 0 in"):
        check_sources(base, [other])
    tokenizer.write_text(json.dumps({"model": {"vocab": {"a": 0, "c": 1}}}))
    with pytest.raises(CheckpointError, match="id 1 is token 'c', 'b' in"):
        check_sources(base, [other])
    tokenizer.write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1, "c": 2}}}))
    assert ["3 tokens, 2 in" in note for note in check_sources(base, [other])] == [True]


def test_other_dtypes_and_harmless_configuration_are_noted(tmp_path):
    base = open_checkpoint(save(tmp_path / "base", tensors(dtype=torch.bfloat16)))
    other = open_checkpoint(save(tmp_path / "other", tensors(), config={**CONFIG, "max_position_embeddings": 9}))
    notes = check_sources(base, [other])
    assert len(notes) == 2 and "max_position_embeddings is 9" in notes[0] and "float32" in notes[1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_that_are_not_finite_are_named(tmp_path, value, dtype):
    content = tensors(dtype=dtype)
    content[NAMES[5]][4, 2] = value
    checkpoint = open_checkpoint(save(tmp_path / "m", content, shards=2))
    with pytest.raises(CheckpointError, match=r"of-00002\.safetensors: NaN or Inf in tensor model\.layers\.5\.w"):
        check_finite(checkpoint)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 700])
def test_writer_makes_what_safetensors_reads(tmp_path, max_shard_bytes):
    content = tensors(dtype=torch.bfloat16) | {"model.norm.weight": torch.randn(3), "count": torch.tensor(5)}
    specs = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in content.items()}
    source = open_checkpoint(save(tmp_path / "m", tensors()))
    with atomic_directory(tmp_path / "out") as folder:
        with CheckpointWriter(folder, specs, max_shard_bytes=max_shard_bytes) as writer:
            for name in reversed(list(content)):
                writer.write(name, content[name])
        copy_extras(source, folder, dtype=torch.bfloat16)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert (len(files) == 1) == (max_shard_bytes > 700)
    read = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert read.keys() == content.keys() and all(torch.equal(read[name], content[name]) for name in content)
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    assert (tmp_path / "out/chat_template.jinja").is_file() and (tmp_path / "out/tokenizer.json").is_file()
    written = open_checkpoint(tmp_path / "out")
    assert all(torch.equal(written.read(name), content[name]) for name in content)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "out"]


def test_a_link_out_of_a_checkpoint_is_not_copied(tmp_path):
    (tmp_path / "secret").write_text("secret")
    folder = save(tmp_path / "m", tensors())
    (folder / "vocab.txt").symlink_to(tmp_path / "secret")
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match=r"vocab\.txt: a link to .*secret, outside"):
        copy_extras(open_checkpoint(folder), tmp_path / "out")
    assert not (tmp_path / "out/vocab.txt").exists()


def test_links_of_a_hub_cache_are_copied_as_files(tmp_path):
    snapshot = save(tmp_path / "models--a--b/snapshots/1", tensors())
    blobs = tmp_path / "models--a--b/blobs"
    blobs.mkdir()
    (blobs / "123").write_text("{}")
    (snapshot / "tokenizer_config.json").symlink_to(Path("../../blobs/123"))
    (tmp_path / "out").mkdir()
    copy_extras(open_checkpoint(snapshot), tmp_path / "out")
    copied = tmp_path / "out/tokenizer_config.json"
    assert copied.read_text() == "{}"
    assert not copied.is_symlink()


def test_writer_refuses_what_was_not_announced(tmp_path):
    writer = CheckpointWriter(tmp_path, {"a": (torch.bfloat16, (2,)), "b": (torch.float32, (2,))})
    with pytest.raises(CheckpointError, match=r"a: shape \(3,\), expected \(2,\)"):
        writer.write("a", torch.ones(3))
    with pytest.raises(CheckpointError, match="c: not announced"):
        writer.write("c", torch.ones(3))
    with pytest.raises(CheckpointError, match="a: NaN or Inf"):
        writer.write("a", torch.tensor([1.0, float("nan")]))
    writer.write("a", torch.ones(2))
    with pytest.raises(CheckpointError, match="1 tensors not written, first b"):
        writer.close()


def test_replaced_tensors_leave_other_shards_linked(tmp_path):
    content = tensors(dtype=torch.bfloat16)
    source = open_checkpoint(save(tmp_path / "m", content, shards=3))
    before = {file.name: file.read_bytes() for file in source.folder.iterdir()}
    name = NAMES[4]
    replace_tensors(source, tmp_path / "out", {name: torch.ones(12, 6)})
    out = open_checkpoint(tmp_path / "out")
    for other in content:
        expected = torch.ones(12, 6, dtype=torch.bfloat16) if other == name else content[other]
        assert torch.equal(out.read(other), expected)
    for file in source.files:
        linked = file.samefile(out.folder / file.name)
        assert linked == (file != source.tensors[name].file)
    assert before == {file.name: file.read_bytes() for file in source.folder.iterdir()}
    assert {file.name for file in out.folder.iterdir()} == set(before)


def test_replacing_refuses_unknown_names_other_shapes_and_nan(tmp_path):
    source = open_checkpoint(save(tmp_path / "m", tensors()))
    with pytest.raises(CheckpointError, match="no tensor named ghost"):
        replace_tensors(source, tmp_path / "out", {"ghost": torch.ones(1)})
    with pytest.raises(CheckpointError, match="expected"):
        replace_tensors(source, tmp_path / "out", {NAMES[0]: torch.ones(1)})
    with pytest.raises(CheckpointError, match="NaN or Inf"):
        replace_tensors(source, tmp_path / "out", {NAMES[0]: torch.full((12, 6), torch.nan)})
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_existing_directories_are_not_touched(tmp_path):
    source = open_checkpoint(save(tmp_path / "m", tensors()))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="there already"):
        replace_tensors(source, tmp_path / "out", {})
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()  # an empty directory is fine
    replace_tensors(source, tmp_path / "out", {})


def test_too_small_a_disk_is_told_before_any_work(tmp_path):
    with pytest.raises(CheckpointError, match="GB of disk"), atomic_directory(tmp_path / "out", needed_bytes=10**18):
        raise AssertionError("not reached")
    assert not list(tmp_path.iterdir())


def test_a_killed_writer_leaves_nothing_under_the_final_name(tmp_path):
    script = """
import sys, torch
from harc.checkpoint import CheckpointWriter, atomic_directory
with atomic_directory(sys.argv[1]) as folder, CheckpointWriter(folder, {n: (torch.float32, (9,)) for n in "ab"}) as w:
    w.write("a", torch.ones(9))
    print("half", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", script, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "out").exists()
