"""Whether the files beside the weights agree with the sources': configuration, tokenizer, chat template."""

from collections.abc import Sequence
from pathlib import Path

from harc.checking.findings import Finding
from harc.checkpoint import Checkpoint, CheckpointError, check_family, read_json
from harc.checkpoint.check import DECISIVE, SILENT

_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_sides(model: Checkpoint, references: Sequence[Checkpoint]) -> list[Finding]:
    """Findings on config.json, tokenizer.json and the chat template, held against the sources' (or the base's)."""
    findings = _tokenizer(model, references) + _template(model, references)
    config = model.folder / "config.json"
    for key in sorted({*model.config, *(key for one in references for key in one.config)} - (SILENT - set(_SPECIAL))):
        others = [one.config.get(key) for one in references]
        found = model.config.get(key)
        if not references or found in others:
            continue
        given = ", ".join(dict.fromkeys(repr(other) for other in others))
        text = f"{config.name}: {key} is {found!r}, {given} in {', '.join(one.folder.name for one in references)}"
        findings.append(Finding("problem" if key in DECISIVE or key.startswith("rope") else "note", "files", text))
    return findings


def _tokenizer(model: Checkpoint, references: Sequence[Checkpoint]) -> list[Finding]:
    file = model.folder / "tokenizer.json"
    if not file.is_file():
        having = [one.source for one in references if (one.folder / "tokenizer.json").is_file()]
        if having:
            return [Finding("problem", "files", f"no tokenizer.json; {having[0]} has one")]
        return [Finding("note", "files", "no tokenizer.json")]
    findings: list[Finding] = []
    for one in references:
        try:
            findings += [Finding("note", "files", note) for note in check_family(one, [model])]
        except CheckpointError as error:
            findings.append(Finding("problem", "files", str(error)))
    return list({finding.text: finding for finding in findings}.values())


def _template(model: Checkpoint, references: Sequence[Checkpoint]) -> list[Finding]:
    own, others = template(model.folder), [template(one.folder) for one in references]
    if own in others or not references:
        return []
    if own is None:
        return [Finding("problem", "files", f"no chat template; {references[0].source} has one")]
    if not any(others):
        return [Finding("note", "files", "a chat template, which no source has")]
    return [Finding("problem", "files", "the chat template is none of the sources': it renders another text")]


def template(folder: Path) -> str | None:
    """A checkpoint's chat template, wherever it is kept; None where it has none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8").strip()
    config = folder / "tokenizer_config.json"
    found = read_json(config).get("chat_template") if config.is_file() else None
    return found.strip() if isinstance(found, str) else None
