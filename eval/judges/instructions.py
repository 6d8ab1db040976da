"""IFEval: a response is right when it follows every instruction of its prompt, by lm-eval's own checkers (strict).

Three kinds of instruction need what may not be there: those that count sentences or words in capitals read NLTK's
`punkt_tab`, which is data to be downloaded; those on a language or on letter case ask langdetect to guess the language.
lm-eval would download `punkt_tab` when it is imported, whatever it is asked; here it is looked for if a file needs it.
"""

import functools
import io
import json
import logging
import os
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from eval.data import DataError

log = logging.getLogger(__name__)

COLUMNS = ("key", "prompt", "instruction_id_list", "kwargs")
READ_PUNKT = ("length_constraints:number_sentences", "change_case:capital_word_frequency")


def follows(doc: Mapping[str, Any], responses: Sequence[str]) -> list[bool]:
    """Which responses follow all instructions: lm-eval's prompt-level strict accuracy of each.

    doc: a row of IFEval, or a record or document that holds one as `problem` (a mapping or JSON).
    """
    checkers, row = _checkers(), problem(doc)
    example = checkers.InputExample(
        key=row.get("key", 0),
        instruction_id_list=list(row["instruction_id_list"]),
        prompt=row["prompt"],
        kwargs=[dict(arguments) for arguments in row["kwargs"]],
    )

    def right(response: str) -> bool:
        try:
            return bool(checkers.test_instruction_following_strict(example, response).follow_all_instructions)
        except Exception as error:  # 3,000 brackets are too deep for the check of JSON; that costs this response alone
            log.warning("problem %s: a response counts as wrong: %s: %s", example.key, type(error).__name__, error)
            return False

    verdicts = {response: right(response) for response in dict.fromkeys(responses)}
    return [verdicts[response] for response in responses]


def problem(doc: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row of IFEval in a document."""
    row = doc.get("problem") or doc
    return json.loads(row) if isinstance(row, str) else row


def require_checkers(rows: Sequence[Mapping[str, Any]] | None, place: str) -> None:
    """Finds, before anything is generated, what would keep a row from being checked.

    rows: of the data file; None for the published data set, which has every kind of instruction.
    place: what the messages call the rows.

    Raises:
        DataError: an instruction that lm-eval does not know, arguments that don't fit, or data that isn't there and
            cannot be downloaded.
    """
    _checkers()
    for number, row in enumerate(rows or (), start=1):
        names, arguments = row["instruction_id_list"], row["kwargs"]
        if len(names) != len(arguments):
            raise DataError(f"{place}, problem {number}: {len(names)} instructions, {len(arguments)} `kwargs`")
        for name, given in zip(names, arguments, strict=True):
            _check_one(name, given, f"{place}, problem {number}")
    if rows is None or any(name in READ_PUNKT for row in rows for name in row["instruction_id_list"]):
        _require_punkt(place)


def _check_one(name: str, given: Mapping[str, Any], place: str) -> None:
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    if name not in INSTRUCTION_DICT:
        raise DataError(f"{place}: unknown instruction {name!r}; lm-eval checks {', '.join(sorted(INSTRUCTION_DICT))}")
    try:
        INSTRUCTION_DICT[name](name).build_description(**{key: value for key, value in given.items() if value})
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{place}: {name} does not take {dict(given)}: {error}") from error


def _require_punkt(place: str) -> None:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english")
        return
    except LookupError:
        said = io.StringIO()
        if nltk.download("punkt_tab", quiet=True, print_error_to=said):
            return
    raise DataError(
        f"{place}: {' and '.join(READ_PUNKT)} need NLTK's data `punkt_tab`, which is not here and cannot be downloaded "
        f"({' '.join(said.getvalue().replace('[nltk_data]', '').split())}). With a network: python -m nltk.downloader "
        "-d FOLDER punkt_tab; then set NLTK_DATA=FOLDER"
    )


@functools.cache
def _checkers() -> ModuleType:
    """lm-eval's module, imported without its search for data; langdetect guesses the same each time."""
    import langdetect

    langdetect.DetectorFactory.seed = 0
    rank = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "1"  # only rank 0 downloads when imported
    try:
        from lm_eval.tasks.ifeval import utils
    finally:
        del os.environ["LOCAL_RANK"]
        if rank is not None:
            os.environ["LOCAL_RANK"] = rank
    return utils
