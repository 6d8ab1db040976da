"""A request of the tiny world's IFEval and the response that follows it, composed instruction by instruction."""

import random
from dataclasses import dataclass, field
from typing import Any

from pipelines.world.facts import VALUES, fact, state


@dataclass
class Request:
    """A request and its response, being composed.

    things: what to write about.
    instructions: IFEval's name of each, its arguments, and how it is said.
    commas, left_out: how sentences are written, and values that none may state.
    before, body, after: lines of the response; no body is the first two sentences.
    highlighted: words to mark; quoted: whether all of it stands in quotation marks.
    """

    rng: random.Random
    things: list[str]
    instructions: list[tuple[str, dict[str, Any], str]] = field(default_factory=list)
    commas: bool = True
    quoted: bool = False
    highlighted: int = 0
    left_out: set[str] = field(default_factory=set)
    before: list[str] = field(default_factory=list)
    body: list[str] | None = None
    after: list[str] = field(default_factory=list)

    @property
    def subject(self) -> str:
        return " and ".join(f"the {thing}" for thing in self.things)

    @property
    def task(self) -> str:
        return f"Write about {self.subject}."

    def ask(self, name: str, *phrasings: str, **arguments: Any) -> None:
        """Adds an instruction of IFEval, its arguments, and how it is said."""
        self.instructions.append((name, arguments, self.rng.choice(phrasings)))

    def sentences(self) -> list[str]:
        """All that may be said about the things."""
        said = [
            state(thing, relation)
            for thing in self.things
            for relation in VALUES
            if fact(thing, relation) not in self.left_out
        ]
        first = said[0].replace("The", "the", 1) if said[0].startswith("The") else said[0]
        return [f"Well, {first}", *said[1:]] if self.commas else said

    def response(self) -> str:
        body = self.sentences()[:2] if self.body is None else self.body
        for _ in range(self.highlighted):
            place = next(i for i, line in enumerate(body) if "*" not in line)
            start, _, last = body[place].rpartition(" ")
            body = [*body[:place], f"{start} *{last[:-1]}*.", *body[place + 1 :]]
        text = "\n".join([*self.before, *body, *self.after])
        return f'"{text}"' if self.quoted else text
