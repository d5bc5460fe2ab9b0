"""Which pairs a ranker compares, and in which rounds. A new schedule is a generator and a row in SCHEDULES (blendkit/rankers/__init__.py).

A schedule yields a round of ordered pairs (i, j), is sent their logits in the same order, and may return an
order: candidate indices, best first, that it found for sure (all of them, or only the top). All records of a
window go through their rounds together, so that even one comparison a round fills the batches.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Generator, Iterable
from itertools import combinations, permutations

import numpy as np

from blendkit.aggregate import Comparison, StrengthPosterior
from blendkit.errors import UsageError
from blendkit.rankers import SCHEDULES

Pair = tuple[int, int]
ScheduleRounds = Generator[list[Pair], list[float], list[int] | None]
Schedule = Callable[[int, random.Random], ScheduleRounds]


def full(n: int, rng: random.Random) -> ScheduleRounds:
    """Both orders of every pair, n(n-1) comparisons in one round (LLM-Blender, section 3.3)."""
    yield list(permutations(range(n), 2))
    return None


def single(n: int, rng: random.Random) -> ScheduleRounds:
    """Every pair once, in an order drawn by the seed: half of `full`."""
    yield [_drawn(pair, rng) for pair in combinations(range(n), 2)]
    return None


def bubble(n: int, rng: random.Random, runs: int = 1) -> ScheduleRounds:
    """`runs` bubble runs, each of which carries the best of what is left to the end (the paper's O(N) inference).

    Both orders of a pair are compared, and on a draw the later one wins, as in the reference. The top `runs` are
    exact where the ranker is transitive. Starts from an order drawn by the seed.
    """
    line = rng.sample(range(n), n)
    versus = Versus()
    for run in range(min(runs, n - 1)):
        for place in range(n - 1 - run):
            current, following = line[place], line[place + 1]
            yield from versus.ask([(current, following)])
            if versus.margin(current, following) > 0:
                line[place], line[place + 1] = following, current
    return line[: n - 1 - runs : -1] if runs < n else line[::-1]


def sort(n: int, rng: random.Random) -> ScheduleRounds:
    """Merge insertion (Ford and Johnson 1959) on the margin of both orders: all n in order, nearly as few comparisons as can be."""
    versus = Versus()
    ascending = yield from _merge_insertion(rng.sample(range(n), n), versus)
    return ascending[::-1]


def swiss(n: int, rng: random.Random, rounds: int) -> ScheduleRounds:
    """`rounds` rounds of n/2 pairs: neighbours in the ranking so far meet, if they did not yet. One order a pair, drawn by the seed."""
    seen: list[Comparison] = []
    met: set[frozenset[int]] = set()
    ranking = rng.sample(range(n), n)
    for _ in range(rounds):
        pairs = []
        left = list(ranking)
        while left:
            first = left.pop(0)
            second = next((other for other in left if frozenset((first, other)) not in met), None)
            if second is not None:
                left.remove(second)
                met.add(frozenset((first, second)))
                pairs.append(_drawn((first, second), rng))
        if not pairs:
            return None
        seen += _with((yield pairs), pairs)
        ranking = _ranking(StrengthPosterior(seen, n).strengths)
    return None


def active(n: int, rng: random.Random, comparisons: int) -> ScheduleRounds:
    """`comparisons` of them: a ring through all, then always those whose outcome the posterior of strengths is least sure of.

    A round takes pairs that share no candidate, so that none rests on a posterior that its round already changed.
    """
    ring = rng.sample(range(n), n)
    pairs = [(ring[place], ring[(place + 1) % n]) for place in range(n if n > 2 else n - 1)][:comparisons]
    open_pairs = set(permutations(range(n), 2))
    seen: list[Comparison] = []
    while pairs:
        seen += _with((yield pairs), pairs)
        open_pairs -= set(pairs)
        doubt = StrengthPosterior(seen, n).doubt()
        pairs, busy = [], set[int]()
        for pair in sorted(open_pairs, key=lambda pair: (-doubt[pair], pair)):
            if len(seen) + len(pairs) == comparisons:
                break
            if busy.isdisjoint(pair):
                busy.update(pair)
                pairs.append(pair)
    return None


def make_schedule(spec: str) -> Schedule:
    """The schedule of `NAME` or `NAME:NUMBER`; a third parameter of its generator is the number, which may have a default.

    Raises:
        UsageError: there is no such schedule, or its number is missing or no number above 0.
    """
    name, colon, text = spec.partition(":")
    run = SCHEDULES.load(name, "--schedule")
    number = next(iter(list(inspect.signature(run).parameters.values())[2:]), None)
    if colon and number is None:
        raise UsageError(f"--schedule {spec}: {name} takes no number")
    if not colon:
        if number is not None and number.default is number.empty:
            raise UsageError(f"--schedule {spec}: expected {name}:NUMBER, the number of {number.name}")
        return run  # type: ignore[no-any-return]
    assert number is not None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UsageError(f"--schedule {spec}: expected a number of {number.name} above 0, got {text!r}")
    return lambda n, rng: run(n, rng, int(text))


class Versus:
    """Margins s_ij - s_ji of the pairs that were asked for, each asked once."""

    def __init__(self) -> None:
        self._margins: dict[Pair, float] = {}

    def ask(self, pairs: Iterable[Pair]) -> Generator[list[Pair], list[float], None]:
        """Compares both orders of those pairs that are new."""
        new = [pair for pair in pairs if pair not in self._margins]
        if not new:
            return
        logits = yield [order for i, j in new for order in ((i, j), (j, i))]
        for (i, j), forward, backward in zip(new, logits[::2], logits[1::2], strict=True):
            self._margins[i, j], self._margins[j, i] = forward - backward, backward - forward

    def margin(self, i: int, j: int) -> float:
        """Above 0 when candidate i beats candidate j."""
        return self._margins[i, j]


def _merge_insertion(items: list[int], versus: Versus) -> Generator[list[Pair], list[float], list[int]]:
    """The items, worst first."""
    if len(items) < 2:
        return items
    pairs = list(zip(items[::2], items[1::2], strict=False))
    yield from versus.ask(pairs)
    loser_of = {}
    for first, second in pairs:
        winner, loser = (first, second) if versus.margin(first, second) > 0 else (second, first)
        loser_of[winner] = loser
    winners = yield from _merge_insertion(list(loser_of), versus)
    chain = [loser_of[winners[0]], *winners]
    pending: list[tuple[int, int | None]] = [(loser_of[winner], winner) for winner in winners[1:]]
    if len(items) % 2:
        pending.append((items[-1], None))
    for first, last in _insertion_groups(len(pending)):
        for item, bound in reversed(pending[first:last]):
            low, high = 0, len(chain) if bound is None else chain.index(bound)
            while low < high:
                middle = (low + high) // 2
                yield from versus.ask([(item, chain[middle])])
                if versus.margin(item, chain[middle]) > 0:
                    low = middle + 1
                else:
                    high = middle
            chain.insert(low, item)
    return chain


def _insertion_groups(count: int) -> Iterable[tuple[int, int]]:
    """Runs of pending items by Jacobsthal's numbers, so that each binary search spans just under a power of two."""
    start, size, power = 0, 2, 2
    while start < count:
        yield start, min(start + size, count)
        start, power = start + size, power * 2
        size = power - size


def _drawn(pair: Pair, rng: random.Random) -> Pair:
    return pair if rng.random() < 0.5 else (pair[1], pair[0])


def _with(logits: list[float], pairs: list[Pair]) -> list[Comparison]:
    return [(i, j, logit) for (i, j), logit in zip(pairs, logits, strict=True)]


def _ranking(strengths: np.ndarray) -> list[int]:
    return [int(index) for index in np.argsort(-strengths, kind="stable")]
