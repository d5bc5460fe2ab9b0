"""Win rates against one model at equal length, after an idea of Dubois et al. 2024 ("Length-Controlled AlpacaEval").

A logistic regression explains the judge's preference over the baseline by three things: the model's own strength, tanh of
the standardised difference in length, and the instruction's difficulty. The win rate is what it predicts for answers of
equal length. AlpacaEval 2 estimates otherwise (docs/evaluate.md says how), so the numbers are not comparable with its.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blendkit.errors import DataError, UsageError
from blendkit.evaluation.examples import JudgedExample, rounded
from blendkit.evaluation.ratings import MOST_MODELS
from blendkit.terminal_text import count_of, listed, shown

Values = NDArray[np.float64]
RESAMPLES = 100
# So many other models can tell how hard an instruction is. With fewer, single outcomes would pass for difficulty.
ENOUGH = 3


def length_table(examples: list[JudgedExample], baseline: str, seed: int) -> list[dict[str, Any]]:
    """The table `length`: a row a model, fused ones included, best first.

    `length_effect` is the weight of the length term: above 0, the judge likes a model's longer answers. Intervals are
    bootstrapped over examples, while the instructions' difficulties stay as they are.

    Raises:
        UsageError: no model of that name, or no verdicts on it.
        DataError: too many models; each is fitted with all others.
    """
    games = _games(examples, baseline)
    if not games:
        known = dict.fromkeys(model for example in examples for model in example.methods)
        raise UsageError(f"--length-controlled {shown(baseline)}: expected a model that the judge compared with others; there are {listed(known)}")
    if len(games) > MOST_MODELS:
        raise DataError(
            f"--length-controlled {shown(baseline)}: {count_of(len(games), 'model was', 'models were')} compared with it; expected at most {MOST_MODELS}"
        )
    rows = []
    for model, (places, won, longer, characters) in games.items():
        difficulty = _difficulty({name: played for name, played in games.items() if name != model}, len(examples))
        features = np.stack([longer, difficulty[places]], axis=1)
        rate, effect = _fit(features, won)
        generator = np.random.default_rng(seed)
        draws = (generator.integers(len(won), size=len(won)) for _ in range(RESAMPLES))
        low, high = np.percentile([_fit(features[drawn], won[drawn])[0] for drawn in draws], (2.5, 97.5))
        row: dict[str, Any] = {"table": "length", "method": model, "baseline": baseline, "examples": len(won), "win_rate": rounded(100 * float(won.mean()))}
        row |= {"length_controlled": rounded(100 * rate), "low": rounded(100 * float(low)), "high": rounded(100 * float(high))}
        rows.append({**row, "length_effect": rounded(effect), "characters": rounded(float(characters.mean()))})
    return sorted(rows, key=lambda row: -(row["length_controlled"] or 0.0))


def _games(examples: list[JudgedExample], baseline: str) -> dict[str, tuple[NDArray[np.int64], Values, Values, Values]]:
    """Gives for each model: the examples it was compared in, how far it won (0 to 1), tanh of its standardised surplus of characters, its characters."""
    found: dict[str, list[tuple[int, float, int, int]]] = {}
    for example in examples:
        base = example.against.get(baseline)
        if example.margin is None or base is None:
            continue
        for index, model in enumerate(example.methods):
            margin = float(example.margin[index, base])
            if index != base and not math.isnan(margin):
                characters = example.characters[index]
                found.setdefault(model, []).append((example.number, (margin + 1) / 2, characters - example.characters[base], characters))
    games = {}
    for model, rows in found.items():
        places, won, surplus, counts = (np.array(column) for column in zip(*rows, strict=True))
        deviation = surplus.std() or 1.0
        games[model] = (places, won.astype(float), np.tanh(surplus / deviation), counts.astype(float))
    return games


def _difficulty(games: dict[str, tuple[NDArray[np.int64], Values, Values, Values]], size: int) -> Values:
    """[examples]: how much an instruction favours the models over the baseline, from one regression over all of them.

    The model that is rated is not among them, so that its own outcome stays out of the difficulty.
    """
    from scipy.sparse import csr_matrix, hstack

    if len(games) < ENOUGH:
        return np.zeros(size)
    models = len(games)
    places = np.concatenate([place for place, *_ in games.values()])
    won = np.concatenate([wins for _, wins, *_ in games.values()])
    longer = np.concatenate([surplus for _, _, surplus, _ in games.values()])
    owner = np.repeat(np.arange(models), [len(place) for place, *_ in games.values()])
    rows = np.arange(len(won))

    def indicator(columns: Any, width: int, values: Any = None) -> Any:
        return csr_matrix((np.ones(len(rows)) if values is None else values, (rows, columns)), shape=(len(rows), width))

    design = hstack([indicator(places, size), indicator(owner, models), indicator(owner, models, longer)]).tocsr()
    model = _regression(design, won, intercept=False)
    return np.zeros(size) if model is None else np.asarray(model.coef_[0, :size])


def _fit(features: Values, won: Values) -> tuple[float, float]:
    """The mean predicted preference at equal lengths, and the weight of the length term."""
    model = _regression(features, won)
    if model is None:
        return float(won.mean()), 0.0
    equal = features.copy()
    equal[:, 0] = 0.0
    return float(model.predict_proba(equal)[:, 1].mean()), float(model.coef_[0, 0])


def _regression(features: Any, won: Values, intercept: bool = True) -> Any:
    """A logistic regression on preferences between 0 and 1, each a weighted win and loss; None where all are wins or all losses."""
    from scipy.sparse import issparse, vstack
    from sklearn.linear_model import LogisticRegression

    if won.min() == won.max() and won[0] in (0.0, 1.0):
        return None
    both: Any = [features, features]
    twice = vstack(both).tocsr() if issparse(features) else np.concatenate(both)
    labels = np.repeat([1, 0], len(won))
    weights = np.concatenate([won, 1 - won])
    kept = weights > 0
    return LogisticRegression(fit_intercept=intercept, max_iter=1000).fit(twice[kept], labels[kept], sample_weight=weights[kept])
