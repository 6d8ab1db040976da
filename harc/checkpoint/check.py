"""Whether checkpoints can be merged: same architecture, vocabulary, tensors and shapes, and finite values."""

from collections.abc import Sequence
from itertools import islice
from math import prod
from pathlib import Path

from harc.checkpoint.read import Checkpoint, CheckpointError, read_json
from harc.checkpoint.write import is_finite

# Configuration keys whose value decides what the weights mean; tensor shapes hold the rest.
DECISIVE = (
    "architectures",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "num_experts_per_tok",
    "norm_topk_prob",
    "hidden_act",
    "tie_word_embeddings",
)
# Keys that may differ between a base and its fine-tunes without a word.
SILENT = {
    "_name_or_path",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "use_cache",
    "output_router_logits",
    "router_aux_loss_coef",
    "attention_dropout",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
}
_SCAN_BYTES = 1 << 26


def check_sources(reference: Checkpoint, sources: Sequence[Checkpoint]) -> list[str]:
    """Holds every source against the reference (the base model, or the first source): nothing but headers is read.

    Returns:
        Notes on differences that don't stop a merge: a dtype, a configuration value of no account to the weights.

    Raises:
        CheckpointError: another architecture, vocabulary, tensor or shape; the message names file and tensor.
    """
    notes = check_family(reference, sources)
    for source in sources:
        notes += _check_config(reference, source)
        _check_tensors(reference, source)
        other = next((n for n in reference if source.tensors[n].dtype != reference.tensors[n].dtype), None)
        if other is not None:
            notes.append(
                f"{source.tensors[other].file}: {other} is {source.tensors[other].dtype}, "
                f"{reference.tensors[other].dtype} in {reference.source}; the merge is written in the latter"
            )
    return notes


def check_family(reference: Checkpoint, sources: Sequence[Checkpoint]) -> list[str]:
    """Holds every source's model type, and its token ids where it has a tokenizer.json, against the reference's.

    Returns:
        Notes on tokens that only some have.

    Raises:
        CheckpointError: another model type; one id for two tokens or two ids for one; a file that is no tokenizer.
    """
    notes, vocabulary = [], _vocabulary(reference.folder)
    for source in sources:
        found, expected = (checkpoint.config.get("model_type") for checkpoint in (source, reference))
        if found != expected:
            raise CheckpointError(
                f"{source.folder / 'config.json'}: model_type is {found!r}, {expected!r} in {reference.source}; "
                "all models must be of one architecture"
            )
        notes += _check_vocabulary(reference, vocabulary, source)
    return notes


def check_finite(checkpoint: Checkpoint) -> None:
    """Reads every floating-point tensor once, a block of rows at a time.

    Raises:
        CheckpointError: NaN or Inf, naming file and tensor.
    """
    for name, info in checkpoint.tensors.items():
        if not info.dtype.is_floating_point:
            continue
        if info.bytes <= _SCAN_BYTES or not info.shape:
            finite = is_finite(checkpoint.read(name))
        else:
            rows = max(1, _SCAN_BYTES // (prod(info.shape[1:]) * info.dtype.itemsize))
            starts = range(0, info.shape[0], rows)
            finite = all(is_finite(checkpoint.read_rows(name, s, min(s + rows, info.shape[0]))) for s in starts)
        if not finite:
            raise CheckpointError(f"{info.file}: NaN or Inf in tensor {name}")


def _check_config(reference: Checkpoint, source: Checkpoint) -> list[str]:
    notes = []
    for key in sorted(set(reference.config) | set(source.config)):
        expected, found = reference.config.get(key), source.config.get(key)
        if expected == found or key in SILENT:
            continue
        text = f"{source.folder / 'config.json'}: {key} is {found!r}, {expected!r} in {reference.source}"
        if key in DECISIVE:
            raise CheckpointError(f"{text}; these models cannot be merged")
        notes.append(text)
    return notes


def _check_tensors(reference: Checkpoint, source: Checkpoint) -> None:
    for name in islice((name for name in reference if name not in source), 1):
        count = sum(other not in source for other in reference)
        raise CheckpointError(
            f"{source.source}: tensor {name} is missing (in all {count}); it is in {reference.tensors[name].file}"
        )
    for name in islice((name for name in source if name not in reference), 1):
        count = sum(other not in reference for other in source)
        raise CheckpointError(
            f"{source.tensors[name].file}: tensor {name} is extra (in all {count}); {reference.source} lacks it"
        )
    for name, info in source.tensors.items():
        if info.shape != reference.tensors[name].shape:
            raise CheckpointError(
                f"{info.file}: tensor {name} has shape {info.shape}, "
                f"{reference.tensors[name].shape} in {reference.tensors[name].file}"
            )


def _check_vocabulary(reference: Checkpoint, expected: dict[str, int] | None, source: Checkpoint) -> list[str]:
    found = _vocabulary(source.folder)
    if expected is None or found is None or expected == found:
        return []
    file = source.folder / "tokenizer.json"
    tokens = {index: token for token, index in expected.items()}
    for token, index in found.items():
        if expected.get(token, index) != index:
            raise CheckpointError(f"{file}: token {token!r} has id {index}, {expected[token]} in {reference.source}")
        if tokens.get(index, token) != token:
            raise CheckpointError(f"{file}: id {index} is token {token!r}, {tokens[index]!r} in {reference.source}")
    return [f"{file}: {len(found)} tokens, {len(expected)} in {reference.source}; those in both have the same ids"]


def _vocabulary(folder: Path) -> dict[str, int] | None:
    """Reads the token ids of tokenizer.json, added tokens included; None where there is no such file."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    content = read_json(file)
    try:
        words = content["model"]["vocab"]
        if isinstance(words, list):  # unigram models list (token, score)
            words = {entry[0]: index for index, entry in enumerate(words)}
        return {**words, **{token["content"]: token["id"] for token in content.get("added_tokens", [])}}
    except (KeyError, TypeError, IndexError) as error:
        raise CheckpointError(f"{file}: no `model.vocab` of tokens and ids; fetch it again") from error
