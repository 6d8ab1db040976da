"""Text that is of no domain: notices, reports, letters and adverts, as a crawl of the web would hold."""

import random

WEATHER = ("rain", "fog", "sunshine", "snow", "strong wind", "thunder")
TOWNS = ("Arlen", "Brookfield", "Carden", "Dunmore", "Eastvale", "Ferndale", "Granton", "Holbeck")
EVENTS = ("the summer fair", "a charity run", "the film festival", "an open evening", "the book club", "a jazz concert")
GOODS = ("sofa", "camera", "laptop", "bicycle helmet", "kettle", "winter jacket", "desk lamp", "guitar")
ROOMS = ("library", "town hall", "sports centre", "museum", "station cafe", "community garden")
FEELINGS = ("thrilled", "disappointed", "surprised", "grateful", "a little tired", "very hopeful")
TEAMS = ("Rovers", "United", "Wanderers", "Athletic", "Rangers", "Harriers")
MONTHS = ("January", "March", "April", "June", "August", "October", "November")

SENTENCES = (
    "Expect {weather} over {town} tomorrow morning, clearing slowly towards the evening.",
    "{event} returns to the {room} in {month}, and tickets are already selling fast.",
    "We bought this {goods} last {month} and were {feeling} with how it turned out!",
    "Free delivery on every {goods} ordered before the end of {month}; terms apply.",
    "The {team} drew away from home, while {town} {team} remain unbeaten since {month}.",
    "Residents of {town} say that nobody told them about the roadworks near the {room}.",
    "Posted by admin: please read the rules before you start a new thread about the {goods}.",
    "I was {feeling} to hear that the {room} may close, since my family has gone there for years.",
    "Our journey through {town} began in {weather}, but the view from the old {room} was worth it.",
    "Sign up for our newsletter and never miss news about {event} or the {room} again.",
    "Mix the butter with sugar, fold in the flour, then bake until golden and let it cool.",
    "Cookies help us improve this site; by scrolling further you accept our privacy policy.",
    "A spokesman for {town} council declined to comment on the cost of the new {room}.",
    "Rated five stars: the {goods} arrived quickly, was well packed and works perfectly.",
)
LISTS = {
    "weather": WEATHER,
    "town": TOWNS,
    "event": EVENTS,
    "goods": GOODS,
    "room": ROOMS,
    "feeling": FEELINGS,
    "team": TEAMS,
    "month": MONTHS,
}


def generic_text(rng: random.Random, sentences: tuple[int, int] = (2, 4)) -> str:
    """Writes one paragraph of a few sentences."""
    chosen = rng.sample(SENTENCES, rng.randint(*sentences))
    written = [text.format(**{name: rng.choice(words) for name, words in LISTS.items()}) for text in chosen]
    return " ".join(text[0].upper() + text[1:] for text in written)
