"""Instructions in IFEval's format: write about a thing or two, in a form that IFEval's own checkers can verify.

Of IFEval's instructions these are the ones whose checkers need no data to be downloaded and no language to be guessed.
A request has one to three of them: at most one says how the text is laid out, the others are added to it. The response
is made of facts of the world and follows all of them.
"""

import json
import random
from collections.abc import Callable

from pipelines.world.facts import THINGS, fact, state
from pipelines.world.problems import Problem, zipf
from pipelines.world.request import Request

ENDINGS = ("Any other questions?", "I hope this helps.", "That is all for now.", "Have a nice day.")
PLACEHOLDERS = ("name", "date", "city", "time")
LETTERS = "qxz"
LONGEST = 240  # characters of a response, about 110 tokens


def _bullets(request: Request) -> None:
    sentences = request.sentences()
    n = request.rng.randint(1, min(6, len(sentences)))
    request.ask(
        "detectable_format:number_bullet_lists",
        f"Use exactly {n} bullet points that start with *.",
        f"Make a list of {n} bullet points with *.",
        num_bullets=n,
    )
    request.body = [f"* {sentence}" for sentence in sentences[:n]]


def _paragraphs(request: Request) -> None:
    sentences = request.sentences()
    n = request.rng.randint(2, min(5, len(sentences)))
    request.ask(
        "length_constraints:number_paragraphs",
        f"Write {n} paragraphs with *** between them.",
        f"Separate {n} paragraphs with ***.",
        num_paragraphs=n,
    )
    request.body = "\n***\n".join(sentences[:n]).split("\n")


def _sections(request: Request) -> None:
    sentences = request.sentences()
    n, mark = request.rng.randint(2, min(5, len(sentences))), request.rng.choice(["SECTION", "Part"])
    request.ask(
        "detectable_format:multiple_sections",
        f"Write {n} sections that begin with {mark} 1 and so on.",
        f"Make {n} sections. Mark each with {mark} and its number.",
        section_spliter=mark,
        num_sections=n,
    )
    request.body = [line for i in range(n) for line in (f"{mark} {i + 1}", sentences[i])]


def _two_responses(request: Request) -> None:
    request.ask(
        "combination:two_responses",
        "Give two different responses with ****** between them.",
        "Answer twice. Put ****** between the two answers.",
    )
    first, second, *_ = request.sentences()
    request.body = [first, "******", second]


def _many_words(request: Request) -> None:
    sentences = request.sentences()
    most = sum(len(sentence.split()) for sentence in sentences) // 5
    n = 5 * request.rng.randint(min(2, most), most)
    request.ask(
        "length_constraints:number_words",
        f"Use at least {n} words.",
        f"Your answer must have at least {n} words.",
        relation="at least",
        num_words=n,
    )
    request.body, words = [], 0
    while words < n:
        request.body.append(sentences[len(request.body)])
        words += len(request.body[-1].split())


def _plain(request: Request) -> None:
    """Leaves the layout open."""


def _no_comma(request: Request) -> None:
    request.ask("punctuation:no_comma", "Do not use commas.", "Write it without any commas.")
    request.commas = False


def _forbidden(request: Request) -> None:
    """Forbids what would be said: the owners of the things."""
    words = sorted({fact(thing, "owner") for thing in request.things})
    request.ask(
        "keywords:forbidden_words",
        f"Do not say {' or '.join(words)}.",
        f"Never use the word {' or the word '.join(words)}.",
        forbidden_words=words,
    )
    request.left_out.update(words)


def _repeat(request: Request) -> None:
    request.ask(
        "combination:repeat_prompt",
        "First repeat the first sentence of this request.",
        "Begin with the first sentence of this request word for word.",
        prompt_to_repeat=request.task,
    )
    request.before.insert(0, request.task)


def _title(request: Request) -> None:
    request.ask("detectable_format:title", "Give it a title in << and >>.", "Add a title such as <<title>>.")
    request.before.append(f"<<About {request.subject}>>")


def _keywords(request: Request) -> None:
    words = sorted(request.rng.sample(THINGS, request.rng.choice([1, 2])))
    request.ask(
        "keywords:existence",
        f"Include the words {' and '.join(words)}.",
        f"Use these keywords: {' and '.join(words)}.",
        keywords=words,
    )
    request.after.append(f"I like {' and '.join(f'the {word}' for word in words)}.")


def _frequency(request: Request) -> None:
    word, n = request.rng.choice(THINGS), request.rng.randint(2, 5)
    request.ask(
        "keywords:frequency",
        f"Say the word {word} at least {n} times.",
        f"The word {word} should appear at least {n} times.",
        keyword=word,
        frequency=n,
        relation="at least",
    )
    request.after.append(f"I see {' and '.join([f'the {word}'] * n)}.")


def _letters(request: Request) -> None:
    letter, n = request.rng.choice(LETTERS), request.rng.randint(2, 6)
    request.ask(
        "keywords:letter_frequency",
        f"The letter {letter} should appear at least {n} times.",
        f"Use the letter {letter} at least {n} times.",
        letter=letter,
        let_frequency=n,
        let_relation="at least",
    )
    request.after.append(f"{' '.join([letter] * n)}.")


def _placeholders(request: Request) -> None:
    n = request.rng.randint(1, len(PLACEHOLDERS))
    request.ask(
        "detectable_content:number_placeholders",
        f"Use at least {n} placeholders in square brackets such as [name].",
        f"Put in {n} or more placeholders such as [name].",
        num_placeholders=n,
    )
    request.after.append(f"Signed {' '.join(f'[{word}]' for word in PLACEHOLDERS[:n])}.")


def _highlights(request: Request) -> None:
    n = request.rng.randint(1, 2 if request.body is None else min(3, sum("*" not in line for line in request.body)))
    request.ask(
        "detectable_format:number_highlighted_sections",
        f"Highlight at least {n} words with markdown such as *word*.",
        f"Mark {n} or more words as *word*.",
        num_highlights=n,
    )
    request.highlighted = n


def _postscript(request: Request) -> None:
    mark = request.rng.choice(["P.S.", "P.P.S"])
    request.ask(
        "detectable_content:postscript",
        f"Add a postscript that starts with {mark}",
        f"At the end put {mark} and a last remark.",
        postscript_marker=mark,
    )
    request.after.append(f"{mark} I like {request.subject}.")


def _ending(request: Request) -> None:
    phrase = request.rng.choice(ENDINGS)
    request.ask(
        "startend:end_checker",
        f"End with the phrase: {phrase}",
        f"The last words must be: {phrase}",
        end_phrase=phrase,
    )
    request.after.append(phrase)


def _quotation(request: Request) -> None:
    request.ask(
        "startend:quotation", "Wrap all of it in double quotation marks.", "Put double quotes around your answer."
    )
    request.quoted = True


def _json(request: Request) -> None:
    request.ask("detectable_format:json_format", "Answer in JSON format.", "Your answer must be JSON.")
    request.body = [json.dumps({thing: state(thing, "owner") for thing in request.things})]


# In the order in which they act: what changes the sentences, the layout, what is added before and after.
SENTENCES = (_no_comma, _forbidden)
LAYOUTS = (_bullets, _many_words, _paragraphs, _sections, _two_responses)
ADDED = (_repeat, _title, _highlights, _keywords, _frequency, _letters, _placeholders, _postscript, _ending, _quotation)
APART = (
    {_repeat, _quotation},
    {_bullets, _quotation},
    {_highlights, _bullets},
    {_highlights, _paragraphs},
    {_highlights, _sections},
)


def _choose(rng: random.Random) -> list[Callable[[Request], None]]:
    count = rng.choices([1, 2, 3], weights=[0.6, 0.3, 0.1])[0]
    if count == 1 and rng.random() < 0.08:
        return [_json]
    layout = [rng.choice(LAYOUTS)] if rng.random() < 0.5 else []
    rest = rng.sample([*SENTENCES, *ADDED], count - len(layout))
    chosen = {*layout, *rest}
    if any(pair <= chosen for pair in APART):
        return []
    return [instruction for instruction in (*SENTENCES, *LAYOUTS, *ADDED) if instruction in chosen]


def sample_instruction(rng: random.Random, wanted: Callable[[str], bool]) -> Problem | None:
    """Draws one request with one to three instructions."""
    request = Request(rng, rng.sample(THINGS, zipf(rng, [1, 2], 1.0)))
    chosen = _choose(rng)
    if not chosen:
        return None
    for instruction in chosen:
        instruction(request)
    asked = sorted(f"{name} {json.dumps(arguments)}" for name, arguments, _ in request.instructions)
    signature = f"instruction {request.subject} | {' | '.join(asked)}"
    if not wanted(signature):
        return None
    response = request.response()
    if len(response) > LONGEST:
        return None
    rng.shuffle(request.instructions)
    prompt = " ".join([request.task, *(text for _, _, text in request.instructions)])
    return Problem(
        task="tiny_ifeval",
        signature=signature,
        prompt=prompt,
        response=response,
        item={
            "prompt": prompt,
            "instruction_id_list": [name for name, _, _ in request.instructions],
            "kwargs": [arguments for _, arguments, _ in request.instructions],
        },
    )
