"""What an evaluation leaves of a task: accuracy with its interval, right samples of each problem, and all responses."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import statistics

Document = Mapping[str, Any]  # as lm-eval logs it: doc_id, doc, arguments, resps; and `correct`, a verdict per sample


def task_result(documents: Sequence[Document], samples: int, seed: int) -> dict[str, Any]:
    """Accuracy, ci95 (half-width of its 95 % interval), samples, ids, counts (right samples of each problem)."""
    counts = [sum(document["correct"]) for document in documents]
    interval = statistics.accuracy(counts, samples, seed)
    return {
        "accuracy": interval.mean,
        "ci95": interval.half_width,
        "samples": samples,
        "ids": [_identity(document) for document in documents],
        "counts": counts,
    }


def write_samples(path: Path, documents: Sequence[Document], ids: Sequence[str]) -> None:
    """One problem a line: its prompt, and its distinct responses with how often each came and whether it is right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for identity, document in zip(ids, documents, strict=True):
            texts, verdicts = document["resps"][0], document["correct"]
            right = dict(zip(texts, verdicts, strict=True))
            responses = [{"text": t, "count": c, "correct": bool(right[t])} for t, c in Counter(texts).most_common()]
            row = {"id": identity, "prompt": document["arguments"][0][0], "responses": responses}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_results(out: Path, settings: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """results.json: the settings, and every task's result."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps({"settings": settings, "tasks": results}, indent=1) + "\n")


def _identity(document: Document) -> str:
    doc = document["doc"]
    return str(next((doc[key] for key in ("id", "task_id", "unique_id", "key") if key in doc), document["doc_id"]))
