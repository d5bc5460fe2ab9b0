"""In which order a training reads its examples: every one once an epoch, or drawn from a mixture of sets."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from blendkit.errors import DataError, UsageError
from blendkit.seeding import seeded
from blendkit.training.examples import Example


@dataclass(frozen=True)
class Mixing:
    """A mixture of sets: the examples whose records have the same value in the field `field`.

    A set of n examples has the share w·n^(1/temperature) of the draws, less the sum of all; w is in `weights`, 1 where it is not.
    `longer_wins`, in percent, is the share of examples whose longer answer is the better one among those of two answers of a set;
    `longer_wins_in` is the same for some sets.

    Raises:
        UsageError: a number is out of its range, or weights without a field.
    """

    field: str | None = None
    temperature: float = 1.0
    weights: tuple[tuple[str, float], ...] = ()
    longer_wins: float | None = None
    longer_wins_in: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.temperature < math.inf:
            raise UsageError(f"--temperature {self.temperature:g}: expected a number from 1 on")
        if self.field is None and (self.weights or self.temperature != 1 or self.longer_wins_in):
            raise UsageError("--weight, --temperature and --longer-wins-in are for the sets of --mix FIELD")
        for name, weight in self.weights:
            if not 0 <= weight < math.inf:
                raise UsageError(f"--weight {name}={weight:g}: expected a number from 0 on")
        shares = [("--longer-wins ", self.longer_wins), *((f"--longer-wins-in {name}=", share) for name, share in self.longer_wins_in)]
        for flag, share in shares:
            if share is not None and not 0 <= share <= 100:
                raise UsageError(f"{flag}{share:g}: expected a percentage from 0 to 100")

    @classmethod
    def of(
        cls, field: str | None, temperature: float, weights: Sequence[str], longer_wins: float | None = None, longer_wins_in: Sequence[str] = ()
    ) -> Mixing | None:
        """The mixture of a command's flags, weights and percentages as SET=NUMBER; None where they ask for none. Raises UsageError as the class does."""
        mixing = cls(field, temperature, _numbers("--weight", "people=2", weights), longer_wins, _numbers("--longer-wins-in", "people=50", longer_wins_in))
        return mixing if field is not None or longer_wins is not None else None

    def longer(self) -> dict[str, float]:
        """The sets of `longer_wins_in`, with shares from 0 to 1."""
        return {name: share / 100 for name, share in self.longer_wins_in}

    def shares(self, examples: Sequence[Example]) -> list[tuple[list[int], float]]:
        """The groups that examples are drawn from, as places, and each one's share of the draws, which are 1 together.

        Raises:
            DataError: a weight is of a set that there is not, or nothing is left to draw.
        """
        sets: dict[str, list[int]] = defaultdict(list)
        for place, example in enumerate(examples):
            sets[example.set].append(place)
        weights = dict(self.weights)
        named = [("--weight", name) for name in weights] + [("--longer-wins-in", name) for name, _ in self.longer_wins_in]
        if unknown := [f"{flag} {name}" for flag, name in named if name not in sets]:
            raise DataError(f"{unknown[0]}: no example to learn from has this in the field {self.field}; there are {', '.join(sorted(sets))}")
        sizes = {name: weights.get(name, 1.0) * len(places) ** (1 / self.temperature) for name, places in sets.items()}
        total = sum(sizes.values())
        if not total:
            raise DataError("--weight: every set has the weight 0, so that there is nothing to learn from")
        return [
            (group, sizes[name] / total * part)
            for name, places in sets.items()
            for group, part in self._by_length(examples, places, name)
            if sizes[name] * part
        ]

    def _by_length(self, examples: Sequence[Example], places: list[int], name: str) -> list[tuple[list[int], float]]:
        """The places of a set in groups, with each one's share of the set."""
        share = self.longer().get(name, None if self.longer_wins is None else self.longer_wins / 100)
        if share is None:
            return [(places, 1.0)]
        kinds: dict[bool | None, list[int]] = defaultdict(list)
        for place in places:
            kinds[longer_is_better(examples[place])].append(place)
        pairs = len(places) - len(kinds[None])
        parts = {True: share, False: 1 - share} if kinds[True] and kinds[False] else {True: 1.0, False: 1.0}
        return [(group, (parts[kind] * pairs if kind is not None else len(group)) / len(places)) for kind, group in kinds.items() if group]

    def order(self, examples: Sequence[Example], count: int, seed: int) -> list[int]:
        """The places of `count` examples: a group is drawn by its share, and gives its next one; each of its examples comes once before any comes again.

        Raises:
            DataError: as `shares` does.
        """
        groups, shares = zip(*self.shares(examples), strict=True)
        rng = random.Random(seeded(seed, "mixture"))
        left: list[list[int]] = [[] for _ in groups]
        found = []
        for number in rng.choices(range(len(groups)), shares, k=count):
            if not left[number]:
                left[number] = rng.sample(groups[number], len(groups[number]))
            found.append(left[number].pop())
        return found


def _numbers(flag: str, such: str, given: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Values of a flag that are SET=NUMBER. Raises UsageError where one is not."""
    found = []
    for text in given:
        name, equals, number = text.rpartition("=")
        try:
            found.append((name, float(number if equals else "")))
        except ValueError as error:
            raise UsageError(f"{flag} {text}: expected SET=NUMBER, such as {such}") from error
    return tuple(found)


def longer_is_better(example: Example) -> bool | None:
    """Whether the longer of two answers is the better one by the first task; None where they tie, or are as long, or more than two."""
    if len(example.candidates) != 2:
        return None
    (first, second), (left, right) = example.first(), map(len, example.candidates)
    return None if first == second or left == right else (first > second) == (left > right)
