"""Every file of a checkpoint: missing, empty, cut in half, malformed, of another model. What harc says names the file.

No message of a bare exception type: each is an error that the library raises itself, says what to do, and leaves
nothing under the output's name.
"""

import json
import shutil
from pathlib import Path

import pytest

import harc
from harc.checkpoint import CheckpointError, open_checkpoint
from harc.tokens import load_tokenizer
from tests.harc.tiny_models import family, random_model, text
from tests.pipelines.small_world import make_tokenizer

DEEP = "[" * 100_000
INDEX = "model.safetensors.index.json"
SHARD = "a shard"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> list[Path]:
    """A merged model and two sources, with tokenizers, sharded; and another model's folder."""
    folder = tmp_path_factory.mktemp("good")
    tokenizer = make_tokenizer()
    paths = family("olmoe", folder, vocab_size=len(tokenizer))
    for path in paths:
        tokenizer.save_pretrained(path)
    other = folder / "other"
    random_model("qwen3_moe", vocab_size=len(tokenizer) + 8).save_pretrained(other, max_shard_size="60KB")
    tokenizer.save_pretrained(other)
    return [*paths, other]


def damaged(folder: Path, name: str, how: str, good: list[Path]) -> None:
    def named(folder: Path) -> Path:
        return min(folder.glob("*.safetensors")) if name == SHARD else folder / name

    file = named(folder)
    if how == "missing":
        file.unlink()
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "cut":
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content[: len(content) // 2])
    elif how == "another model's":
        content = named(good[3]).read_bytes()
        file.unlink()  # a link
        file.write_bytes(content)
    elif how == "deep":
        file.write_text(DEEP)
    elif how == "a list":
        file.write_text("[1, 2]")


def use(function: str, paths: list[Path], out: Path) -> None:
    data = [text(40, 0), text(40, 1)]
    if function == "merge":
        harc.merge("average", paths[:2], None, out, progress=False)
    elif function == "calibrate":
        harc.calibrate(paths[0], paths[1:], data, out=out, progress=False)
    else:
        harc.diagnose(paths[0], paths[1:], data)


FILES = ("config.json", INDEX, SHARD, "tokenizer.json", "tokenizer_config.json", "generation_config.json")
WAYS = ("missing", "empty", "cut", "another model's", "deep", "a list")
# What is not needed by a function may be missing; a tokenizer of the same tokens is no damage.
HARMLESS = {
    *((name, "missing") for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json")),
    *((name, "another model's") for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json")),
}


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_with_what_to_do(name, how, good, tmp_path) -> None:
    for function in ("merge", "calibrate", "diagnose"):
        for place in (0, 1):  # the merged model; a source
            paths = [tmp_path / f"{function}{place}{index}" for index in range(3)]
            for path, source in zip(paths, good, strict=False):
                shutil.copytree(source, path)
            damaged(paths[place], name, how, good)
            out = tmp_path / f"out {function} {place}"
            only_routers = (name, how, function, place) == (SHARD, "another model's", "calibrate", 1)  # are read
            if (name, how) in HARMLESS or only_routers:
                use(function, paths, out)
                continue
            with pytest.raises(CheckpointError) as refused:
                use(function, paths, out)
            said = str(refused.value)
            assert paths[place].name in said, said
            assert not any(word in said for word in ("KeyError", "TypeError", "RecursionError", "JSONDecodeError"))
            assert not out.exists()


@pytest.mark.parametrize("how", [*WAYS[:3], "deep", "a list"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_named(name, how, good, tmp_path) -> None:
    shutil.copytree(good[0], tmp_path / "model")
    damaged(tmp_path / "model", name, how, good)
    if (name, how) == ("tokenizer_config.json", "missing"):
        return
    with pytest.raises(CheckpointError, match=r"model.*(tokenizer|JSON)"):
        load_tokenizer(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 4}, r"no tensor for model\.layers\.3\..* describes 4 layers"),
        ({"hidden_size": 64}, r"has shape .* that .*config\.json describes"),
        ({"num_experts": 16}, "config.json|shape"),
        ({"model_type": "no_such"}, r"config\.json: transformers makes no causal language model of it"),
        ({"model_type": None}, r"config\.json: has no `model_type`"),
        ({"num_attention_heads": "four"}, r"config\.json: transformers makes no"),
    ],
)
def test_a_configuration_of_other_weights_is_refused(change, message, good, tmp_path) -> None:
    paths = [tmp_path / str(index) for index in range(3)]
    for path, source in zip(paths, good, strict=False):
        shutil.copytree(source, path)
    config = json.loads((paths[0] / "config.json").read_text())
    (paths[0] / "config.json").write_text(json.dumps({**config, **change}))
    for function in ("calibrate", "diagnose"):
        with pytest.raises(CheckpointError, match=message):
            use(function, paths, tmp_path / "out")


def header(**changes) -> bytes:
    content = json.dumps({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}}).encode()
    return len(content).to_bytes(8, "little") + content + bytes(16)


def raw(content: str) -> bytes:
    return len(content).to_bytes(8, "little") + content.encode() + bytes(16)


@pytest.mark.parametrize(
    "content",
    [
        header(data_offsets=[-16, 0]),
        header(data_offsets=[16, 0]),
        header(data_offsets=[0, 16.0]),
        header(data_offsets=["0", "16"]),
        header(data_offsets=[False, 16]),
        header(data_offsets=None),
        header(shape=[-2, -2]),
        header(shape=[2, "2"]),
        header(shape=4),
        header(shape=[4, [1]]),
        header(dtype=["F32"]),
        header(dtype=None),
        raw("[]"),
        raw('{"a": 3}'),
        raw('{"a": null}'),
        raw('"a"'),
        raw(DEEP),
        raw('{"a": ' + DEEP),
        raw("{}"),
        (2**63).to_bytes(8, "little") + b"{}",
        b"\xff" * 40,
    ],
)
def test_hostile_headers_are_refused_by_name(content, tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("weight_map", ["[]", "null", '{"a": 3}', '{"a": ["x"]}', '{"a": null, "b": "x"}', "{}", DEEP])
def test_hostile_indices_are_refused_by_name(weight_map, tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / INDEX).write_text(f'{{"weight_map": {weight_map}}}')
    with pytest.raises(CheckpointError, match=r"index\.json: "):
        open_checkpoint(tmp_path)
