"""The small world that peftkit writes itself: the houses of one town where people eat and drink.

Two things are told about the same houses. The corpus tells of them in plain prose, and the embedded base learns
English from it. The task lists a house's facts as `name: ... | kind: ...`, a form that the corpus never uses, and asks
for one sentence. A price becomes a word on the way, and a conjunction says whether the welcome fits it:

    name: Copper Kettle | kind: inn | place: bridge | dish: plum pie | price: 8 | welcome: warm
    The Copper Kettle by the bridge is an expensive but friendly inn, known for its plum pie.

Train and validation share every word and no name, so a name in validation can only be copied from its context.
Every call gives the same text on every machine: only `Random.random` is drawn from, whose sequence Python guarantees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Literal, TypeVar

__all__ = ["DOCUMENTS", "ROWS", "House", "Split", "corpus", "task"]

Split = Literal["train", "validation"]
Item = TypeVar("Item")

DOCUMENTS: dict[Split, int] = {"train": 20_000, "validation": 400}
ROWS: dict[Split, int] = {"train": 1_200, "validation": 200}
_CORPUS_SEEDS: dict[Split, int] = {"train": 101, "validation": 102}
_TASK_SEEDS: dict[Split, int] = {"train": 201, "validation": 202}

# Word lists are easier to read and to extend as text than as quoted items.
# ruff: noqa: SIM905
_FIRST_NAMES = (
    "Amber Ancient Blue Brass Broken Copper Crooked Crystal Dancing Drowsy Gentle Golden Green Hidden Hollow Humble "
    "Iron Ivory Jolly Laughing Little Lonely Lucky Merry Mossy Painted Patient Proud Purple Quiet Red Rusty "
    "Scarlet Silver Singing Sleepy Velvet Wandering Whistling Winter"
).split()
_LAST_NAMES = (
    "Anchor Badger Barrel Bell Bucket Candle Crow Cuckoo Drum Feather Fiddle Fox Goose Hare Hedgehog Heron "
    "Kettle Ladle Lantern Lion Magpie Moon Mushroom Oak Otter Owl Pear Pigeon Plough Robin Rooster Rose "
    "Saddle Spoon Stag Star Thistle Trumpet Turtle Wheel"
).split()
_KINDS = "alehouse bakery chophouse creamery inn kitchen smokehouse supper-room tavern teahouse".split()
# A preposition for each place, so that a sentence settles on its place as it settles on the preposition.
_PLACES = {
    "bridge": "by the bridge",
    "castle": "below the castle",
    "chapel": "behind the chapel",
    "fountain": "beside the fountain",
    "harbour": "at the harbour",
    "hill": "on the hill",
    "library": "opposite the library",
    "market": "in the market",
    "mill": "near the mill",
    "orchard": "beyond the orchard",
    "station": "outside the station",
    "town wall": "under the town wall",
}
_INGREDIENTS = "apple barley carrot cherry ginger honey leek lemon onion pear plum pumpkin spinach walnut".split()
_DISHES = "bread broth cake cheese jam pie pudding salad soup stew tart toast".split()
_PRICES = range(2, 10)
_WELCOMES = {"warm": "friendly", "cold": "gruff"}
_PEOPLE = "Agnes Bruno Clara Edith Felix Greta Hugo Ivo Jonas Lotte Martin Nora Otto Paula Rufus Selma Tilda".split()

_OPENINGS = (
    "The {name} is {a_kind} {where}.",
    "There is {a_kind} {where}, and its name is the {name}.",
    "Everyone in town knows the {name}, the {kind} {where}.",
    "The {kind} {where} is called the {name}.",
    "If you want a place to eat, look for the {name}, {a_kind} {where}.",
    "{person} keeps the {name}, {a_kind} {where}.",
    "Of all places in town, {person} likes the {name} best, {a_kind} {where}.",
    "Go to the {place} and you will find the {name}, a fine kind of {kind}.",
)
_DISH_SENTENCES = (
    "The best dish at the {name} is the {dish}, and its {dish} is known all over town.",
    "People come to the {place} for {dish}, since nobody makes {dish} like the cook of the {name}.",
    "It is known for {dish}, and {person} has the {dish} of the {kind} every week.",
    "{person} has tried {dish} all over town, but no {dish} is like that of the {name}.",
    "No other {kind} has {dish} like the {name}, where the {dish} is gone by noon.",
    "The cook bakes and boils from dawn, and the {dish} of the {name} is the best {dish} {where}.",
)
_PRICE_SENTENCES = (
    "The price is {price} coins, so the {kind} is {cost}.",
    "The {dish} costs {price} coins, which is {cost}.",
    "At {price} coins the {name} is {cost}.",
    "{person} paid {price} coins for the {dish} and called it {cost}.",
    "For {price} coins you can eat {dish} here, and that is {cost}.",
)
_WELCOME_SENTENCES = (
    "The welcome is {welcome}, for the people are {manner}.",
    "The people at the {name} are {manner}, and the welcome is {welcome}.",
    "{person} got a {welcome} welcome from the {manner} cook.",
    "A {welcome} welcome waits {where}, since the cook of the {name} is {manner}.",
    "With a {welcome} welcome at the door, the {kind} is {manner}.",
)
_FAREWELLS = (
    "Ask for the {dish} at the {name}, the {kind} {where}.",
    "The {kind} {where} and its {dish} are the talk of the town.",
    "{person} went home from the {name} and spoke of the {dish}.",
    "When it rains, {person} sits at a window of the {name} with a plate of {dish}.",
    "In winter a fire burns all day in the {kind}, and travellers eat their {dish} before it.",
    "On summer evenings musicians play at the {name} until midnight.",
    "Children press their noses against the glass of the {name} to see the {dish}.",
    "The wooden sign of the {name} shows a plate of {dish}.",
    "A black cat sleeps on the doorstep of the {kind} and dreams of {dish}.",
    "Behind the {name} grow beans, roses and tall sunflowers.",
)
_VERDICTS = (
    "So the {name} is {verdict}.",
    "In short, it is {a_verdict} place, the {name} {where}.",
    "{person} says that the {kind} {where} is {verdict}.",
    "That is the {name}, {a_verdict} {kind} with good {dish}.",
    "Whoever asks about the {dish} of the {name} hears that it is {verdict}.",
)


@dataclass(frozen=True)
class House:
    """One house of the town and all that there is to know about it."""

    name: str
    kind: str
    place: str
    dish: str
    price: int
    """Coins for a meal."""

    welcome: str
    """`warm` or `cold`."""

    @property
    def where(self) -> str:
        """The place with its preposition."""
        return _PLACES[self.place]

    @property
    def cost(self) -> str:
        """The price as a word."""
        if self.price <= 3:
            return "cheap"
        return "fair" if self.price <= 6 else "expensive"

    @property
    def manner(self) -> str:
        """What a welcome makes of the people who give it."""
        return _WELCOMES[self.welcome]

    @property
    def verdict(self) -> str:
        """Cost and manner, joined by `and` where both are pleasant or both are not."""
        agree = (self.cost != "expensive") == (self.welcome == "warm")
        return f"{self.cost} {'and' if agree else 'but'} {self.manner}"


def corpus(split: Split) -> list[str]:
    """Documents of a few sentences each: every one tells of one house and names its facts again and again."""
    rng = Random(_CORPUS_SEEDS[split])
    return [_document(house, rng) for house in islice(_houses(split, rng), DOCUMENTS[split])]


def task(split: Split) -> list[dict[str, str]]:
    """Rows of a `prompt` that lists a house's facts and the one `completion` that is right for it."""
    houses = islice(_houses(split, Random(_TASK_SEEDS[split])), ROWS[split])
    return [{"prompt": _prompt(house), "completion": _sentence(house)} for house in houses]


def _houses(split: Split, rng: Random) -> Iterator[House]:
    """Houses without end, no two alike."""
    names = _names(split)
    seen: set[House] = set()
    while True:
        house = House(
            name=_pick(names, rng),
            kind=_pick(_KINDS, rng),
            place=_pick(list(_PLACES), rng),
            dish=f"{_pick(_INGREDIENTS, rng)} {_pick(_DISHES, rng)}",
            price=_pick(_PRICES, rng),
            welcome=_pick(list(_WELCOMES), rng),
        )
        if house not in seen:
            seen.add(house)
            yield house


def _names(split: Split) -> list[str]:
    """The names of a split: an eighth of all for validation, along diagonals, so that both splits have every word."""
    return [
        f"{first} {last}"
        for row, first in enumerate(_FIRST_NAMES)
        for column, last in enumerate(_LAST_NAMES)
        if ((row + column) % 8 == 0) == (split == "validation")
    ]


def _document(house: House, rng: Random) -> str:
    """An opening, the dish and perhaps the other facts in any order, and a verdict where these allow one."""
    tells_all = rng.random() < 0.5
    facts = _shuffled([_DISH_SENTENCES, _PRICE_SENTENCES, _WELCOME_SENTENCES], rng) if tells_all else [_DISH_SENTENCES]
    closing = _VERDICTS if tells_all else _FAREWELLS
    words = {
        "name": house.name,
        "kind": house.kind,
        "a_kind": _with_article(house.kind),
        "place": house.place,
        "where": house.where,
        "dish": house.dish,
        "price": house.price,
        "cost": house.cost,
        "welcome": house.welcome,
        "manner": house.manner,
        "verdict": house.verdict,
        "a_verdict": _with_article(house.verdict),
        "person": _pick(_PEOPLE, rng),
    }
    return " ".join(_pick(sentences, rng).format_map(words) for sentences in [_OPENINGS, *facts, closing])


def _prompt(house: House) -> str:
    """The facts in the order of `House`, each after its name."""
    return " | ".join(f"{fact}: {value}" for fact, value in vars(house).items()) + "\n"


def _sentence(house: House) -> str:
    """The one right sentence: four facts copied, a preposition added, price and welcome put into words."""
    verdict = _with_article(house.verdict)
    return f"The {house.name} {house.where} is {verdict} {house.kind}, known for its {house.dish}."


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _pick(items: Sequence[Item], rng: Random) -> Item:
    """One of the items. `Random.choice` would do the same, but its sequence may change between Python versions."""
    return items[int(rng.random() * len(items))]


def _shuffled(items: Sequence[Item], rng: Random) -> list[Item]:
    """The items in random order, by sorting on random keys."""
    return [item for _, item in sorted(((rng.random(), item) for item in items), key=lambda pair: pair[0])]
