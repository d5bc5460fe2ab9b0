"""What quality costs: how good the blend of every subset of models is under a ranking of the stream, and what its answers cost."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec
import numpy as np
from numpy.typing import NDArray

from blendkit.aggregate import verdict_matrix
from blendkit.errors import DataError, RecordError, UsageError
from blendkit.evaluation.examples import rounded
from blendkit.evaluation.statistics import bootstrap
from blendkit.evaluation.tables import Rows
from blendkit.names import method_names
from blendkit.records import Record, generated_only
from blendkit.scorers import better_when_lower
from blendkit.terminal_text import count_of, listed, shown
from blendkit.untrusted import typed

Values = NDArray[np.float64]
Places = NDArray[np.int64]
# All subsets of so many models are looked at; of more, those that grow by one model at a time.
ALL_OF = 12
MOST_MODELS = 64
Amount = Annotated[float, msgspec.Meta(ge=0, le=1e12)]


class _Spent(TypedDict):
    """What a price is computed of."""

    cost: NotRequired[Amount | None]
    prompt_tokens: NotRequired[Amount | None]
    completion_tokens: NotRequired[Amount | None]


class Frontier:
    """Takes records with a ranking and a measure of quality; keeps of a record the models' order, worth and price."""

    def __init__(self, ranking: str, quality: str, prices: Mapping[str, tuple[float, float]] | None = None, seed: int = 0) -> None:
        """`ranking` is one of `ranks`; `quality` is `score:NAME`, or `judge:NAME`: the candidate's win rate over the record's others, in %.

        A candidate's price is its `usage.cost`; where `prices` has its model, tokens by $ a million of the prompt's and of the answer's.

        Raises:
            UsageError: the quality is of neither kind.
        """
        kind, mark, name = quality.partition(":")
        if not mark or kind not in ("score", "judge"):
            raise UsageError(f"quality {shown(quality)}: expected score:NAME or judge:NAME")
        self.ranking, self.quality, self.seed = ranking, quality, seed
        self._kind, self._name, self._prices = kind, name, dict(prices or {})
        self._lower = kind == "score" and better_when_lower(name)
        self._models: dict[str, int] = {}
        # [records × models]: the models from the best rank on, and their worth (higher is better) in that order.
        self._order, self._worth = array("H"), array("d")
        self._spent: list[float] = []
        self.records = self.left_out = 0

    def add(self, record: Record, verdicts: dict[str, list[dict[str, Any]]]) -> None:
        """Takes a record and its `verdicts_of`. One whose models are not those of the first record is left out, and counted.

        Raises:
            RecordError: the ranking, the quality or a price is missing, or two candidates are of one model.
            DataError: there are too many models.
        """
        candidates = record.get("candidates", [])
        generated, methods = generated_only(candidates), method_names(candidates)
        names = [methods[index] for index in generated]
        if len(set(names)) < len(names):
            raise RecordError("candidates", "expected one candidate a model, as subsets of models are compared")
        if not self._models:
            if len(names) > MOST_MODELS:
                raise DataError(f"expected at most {MOST_MODELS} models, whose subsets are compared, got {len(names)}")
            self._models, self._spent = {name: place for place, name in enumerate(names)}, [0.0] * len(names)
        if not names or set(names) != set(self._models):
            self.left_out += 1
            return
        ranks = record.get("ranks", {}).get(self.ranking)
        if ranks is None or len(ranks) != len(generated):
            raise RecordError(f"ranks.{self.ranking}", f"expected ranks of {count_of(len(generated), 'candidate')}; `blendkit rank` writes them")
        worth = self._worth_of(candidates, generated, verdicts)
        for index, name in zip(generated, names, strict=True):
            self._spent[self._models[name]] += self._price(candidates[index], index)
        for place in sorted(range(len(generated)), key=ranks.__getitem__):
            self._order.append(self._models[names[place]])
            self._worth.append(worth[place])
        self.records += 1

    def _worth_of(self, candidates: list[dict[str, Any]], generated: list[int], verdicts: dict[str, list[dict[str, Any]]]) -> list[float]:
        if self._kind == "score":
            values: list[float | None] = [candidates[index].get("scores", {}).get(self._name) for index in generated]
            if None in values:
                lacking = generated[values.index(None)]
                raise RecordError(f"candidates[{lacking}].scores.{self._name}", "expected a number; `blendkit score` writes it")
            sign = -1.0 if self._lower else 1.0
            return [sign * float(value) for value in values if value is not None]
        m = verdict_matrix(verdicts.get(self._name, ()), len(candidates))[np.ix_(generated, generated)]
        won = 50 * (1 + (m - m.T) / 2)
        np.fill_diagonal(won, np.nan)
        met = ~np.isnan(won)
        if not met.any(axis=1).all():
            lacking = generated[int(met.any(axis=1).argmin())]
            raise RecordError(f"verdicts.{self._name}", f"expected a verdict on candidate {lacking} that can be read; `blendkit judge` writes verdicts")
        return [float(value) for value in np.nanmean(won, axis=1)]

    def _price(self, candidate: dict[str, Any], index: int) -> float:
        """In $."""
        usage = typed(candidate.get("usage") or {}, _Spent, f"candidates[{index}].usage")
        if (price := self._prices.get(candidate["model"])) is None:
            if (cost := usage.get("cost")) is None:
                raise RecordError(f"candidates[{index}].usage.cost", f"expected an amount in $, or a price of the model {shown(candidate['model'])}")
            return cost
        prompt, answer = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if prompt is None or answer is None:
            raise RecordError(f"candidates[{index}].usage", "expected prompt_tokens and completion_tokens, which the model's price is for")
        return (prompt * price[0] + answer * price[1]) / 1e6

    def rows(self, notes: list[str], everything: bool = False) -> Rows:
        """The table `frontier`, the cheapest first: what is on the Pareto front, single models and all of them together, or `everything`.

        `price` is in $ for 1,000 records, `quality` the mean worth of the candidate that the ranking puts first of the subset. On the
        `front` is a subset if none that costs less is as good, and none that costs as much is better. The front is chosen by the same
        records that it is measured with, so the best of many subsets looks somewhat better than it is. Intervals of 95 % are bootstrapped
        over records.
        """
        if self.left_out:
            of = count_of(self.records + self.left_out, "record has other models", "records have other models")
            notes.append(f"frontier: {self.left_out:,} of {of} than {listed(self._models)}; left out")
        if not self.records:
            return []
        size = len(self._models)
        order = np.array(self._order, np.int64).reshape(-1, size)
        worth = np.array(self._worth).reshape(-1, size)
        prices = np.array(self._spent) / self.records
        exact = size <= ALL_OF
        subsets, quality = _all_subsets(order, worth) if exact else _growing(order, worth, prices)
        if not exact:
            many = count_of(size, "model has", "models have")
            notes.append(f"frontier: {many} too many subsets; those that grow by the best model at a time were looked at ({len(subsets):,})")
        price = subsets @ prices
        front = pareto(price, quality)
        counts = subsets.sum(axis=1)
        chosen = np.flatnonzero(front | (counts == 1) | (counts == size) | everything)
        chosen = chosen[np.lexsort((-quality[chosen], price[chosen]))]
        measured = [place for place in chosen.tolist() if front[place] or counts[place] in (1, size)]
        bounds = dict(zip(measured, bootstrap(np.stack([_picked(order, worth, subsets[place]) for place in measured], axis=1), self.seed), strict=True))
        sign = -1.0 if self._lower else 1.0
        names = list(self._models)
        rows: Rows = []
        for place in chosen.tolist():
            method = " + ".join(name for name, inside in zip(names, subsets[place], strict=True) if inside)
            row: dict[str, Any] = {"table": "frontier", "method": method, "models": int(counts[place]), "price": round(1000 * float(price[place]), 6)}
            row |= {"quality": rounded(sign * float(quality[place])), "front": bool(front[place]), "intervals": {}}
            if place in bounds:
                row["intervals"] = {"quality": sorted(float(rounded(sign * float(bound)) or 0.0) for bound in bounds[place])}
            rows.append(row)
        return rows


def _all_subsets(order: Places, worth: Values) -> tuple[NDArray[np.bool_], Values]:
    """All subsets but the empty one, [2^n - 1, n], and the quality of each.

    A model is picked where it is in the subset, and all that rank before it are not. So the worth of each pick is summed up by the model and the
    set of those before it, and a subset's quality is a sum over all sets outside of it, which one pass a model gives for all subsets at once.
    """
    records, size = order.shape
    bits = 1 << order
    before = np.cumsum(bits, axis=1) - bits
    sums = np.bincount((order << size | before).ravel(), worth.ravel(), size << size).reshape([size] + [2] * size)
    for axis in range(1, size + 1):
        sums = np.cumsum(sums, axis=axis)
    outside = np.arange(1 << size)[::-1]  # the complement of each subset
    inside = (np.arange(1 << size)[:, None] >> np.arange(size)) & 1 > 0
    quality = np.where(inside, sums.reshape(size, -1)[:, outside].T, 0.0).sum(axis=1) / records
    return inside[1:], quality[1:]


def _growing(order: Places, worth: Values, prices: Values) -> tuple[NDArray[np.bool_], Values]:
    """Single models, and subsets that grow by the model that adds most, and by the one that adds most for its price; with their qualities."""
    size = order.shape[1]
    place_of = np.argsort(order, axis=1).T.copy()  # [models, records]
    worth_of = np.take_along_axis(worth, np.argsort(order, axis=1), axis=1).T.copy()
    found: dict[frozenset[int], float] = {frozenset([model]): float(worth_of[model].mean()) for model in range(size)}
    dear = np.maximum(prices, 1e-12)
    for by_price in (False, True):
        first = max(range(size), key=lambda model: worth_of[model].mean()) if not by_price else int(prices.argmin())
        subset, place, pick = frozenset([first]), place_of[first], worth_of[first]
        while len(subset) < size:
            others = [model for model in range(size) if model not in subset]
            gains = {model: float(np.where(place_of[model] < place, worth_of[model] - pick, 0.0).mean()) for model in others}
            best = max(others, key=lambda model: gains[model] / dear[model] if by_price else gains[model])
            found[subset | {best}] = float(pick.mean()) + gains[best]
            sooner = place_of[best] < place
            subset, place, pick = subset | {best}, np.where(sooner, place_of[best], place), np.where(sooner, worth_of[best], pick)
    inside = np.zeros((len(found), size), bool)
    for row, models in enumerate(found):
        inside[row, list(models)] = True
    return inside, np.array(list(found.values()))


def _picked(order: Places, worth: Values, subset: NDArray[np.bool_]) -> Values:
    """[records]: the worth of the candidate that ranks first of the subset."""
    return np.asarray(worth[np.arange(len(order)), subset[order].argmax(axis=1)])


def pareto(price: Values, quality: Values) -> NDArray[np.bool_]:
    """Which of the points none beats: no other is as cheap and better, or as good and cheaper. Of points that are equal, the first."""
    front = np.zeros(len(price), bool)
    order = np.lexsort((-quality, price))
    best = -np.inf
    for place in order.tolist():
        # Sums of the same numbers in another order are equal.
        if best == -np.inf or quality[place] > best + 1e-12 * max(1.0, abs(best)):
            front[place], best = True, quality[place]
    return front
