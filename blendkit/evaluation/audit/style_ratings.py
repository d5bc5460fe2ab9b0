"""Ratings at equal style: a Bradley-Terry model with differences in length and Markdown beside the models.

It is the style control of LMArena and Arena-Hard (Li, Angelopoulos and Chiang 2024, "Does style matter?"): for each of STYLE, the difference of
both answers over their sum, in standard deviations. A rating at equal style is what is left of a model's strength where both look alike.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blendkit.aggregate import settled
from blendkit.errors import DataError
from blendkit.evaluation.audit.logistic import Fit, logistic
from blendkit.evaluation.audit.style import STYLE, style_of
from blendkit.evaluation.examples import rounded
from blendkit.evaluation.ratings import MEAN, MOST_MODELS, SCALE
from blendkit.evaluation.tables import Rows
from blendkit.judges.position import Z
from blendkit.names import method_names
from blendkit.records import Record

Values = NDArray[np.float64]


class StyledRatings:
    """Takes records with a judge's verdicts, and keeps of each compared pair only who won, and how both look."""

    def __init__(self, judge: str, style: Sequence[str] = STYLE) -> None:
        """`style` are those of STYLE that are held equal."""
        self.judge, self.style = judge, [name for name in STYLE if name in style]
        self._models: dict[str, int] = {}
        self._records, self._first, self._second = (array("q") for _ in range(3))
        self._won, self._styles = array("d"), array("f")
        self._count = 0

    def add(self, record: Record, verdicts: dict[str, list[dict[str, Any]]]) -> None:
        """Takes a record and its `verdicts_of`.

        Raises:
            DataError: there are too many models.
        """
        number, self._count = self._count, self._count + 1
        candidates = record.get("candidates", [])
        methods = method_names(candidates)
        looks: dict[int, tuple[int, int, int, int]] = {}
        for (a, b), verdict in settled(verdicts.get(self.judge, ())).items():
            if verdict.verdict == "unparsed" or methods[a] == methods[b]:
                continue
            for index in (a, b):
                if index not in looks:
                    looks[index] = style_of(candidates[index]["text"])
            self._records.append(number)
            self._first.append(self._models.setdefault(methods[a], len(self._models)))
            self._second.append(self._models.setdefault(methods[b], len(self._models)))
            self._won.append((verdict.margin + 1) / 2)
            self._styles.extend((one - other) / ((one + other) or 1) for one, other in zip(looks[a], looks[b], strict=True))
        if len(self._models) > MOST_MODELS:
            raise DataError(f"more than {MOST_MODELS} models, with {next(reversed(self._models))!r}: they are not rated")

    def rows(self) -> Rows:
        """The tables `style` (a row a model, the best at equal style first) and `style effects` (a row for each of `style`).

        `rating` and `styled` are on Elo's scale, without and with style beside the models, with the mean 1,500. A `coefficient` is in
        log-odds of a win for one standard deviation more. What the verdicts do not determine is None: models that never won or lost against
        the others, whose strengths would be infinite (Ford 1957), and a style that never differs.
        Intervals of 95 % hold for verdicts of a record that hang together.
        """
        models = len(self._models)
        if models < 2:
            return []
        first, second, won, records = (np.array(column) for column in (self._first, self._second, self._won, self._records))
        rated = comparable(first, second, won, models)
        kept = rated[first] & rated[second]
        styles = np.array(self._styles, np.float64).reshape(-1, len(STYLE))[kept][:, [STYLE.index(name) for name in self.style]]
        deviations = styles.std(axis=0) if len(styles) else np.zeros(len(self.style))
        features = np.zeros((int(kept.sum()), models + len(self.style)))
        games = np.arange(len(features))
        features[games, first[kept]], features[games, second[kept]] = 1.0, -1.0
        features[:, models:] = styles / np.where(deviations > 0, deviations, 1.0)
        centred = np.where(rated[:, None] & rated, np.eye(models) - 1 / max(1, rated.sum()), 0.0)
        plain = logistic(features[:, :models], won[kept], records[kept]).combined(centred)
        fit = logistic(features, won[kept], records[kept])
        styled = fit.combined(np.hstack([centred, np.zeros((models, len(self.style)))]))
        played = np.bincount(np.concatenate([self._first, self._second]), minlength=models)
        rows: Rows = []
        for model, place in self._models.items():
            row: dict[str, Any] = {"table": "style", "method": model, "verdicts": int(played[place]), "rating": None, "styled": None, "change": None}
            intervals = {}
            for name, found in (("rating", plain), ("styled", styled)):
                if rated[place] and found.determined[place]:
                    row[name], intervals[name] = _points(found, place)
            if None not in (row["rating"], row["styled"]):
                row["change"] = round(row["styled"] - row["rating"], 1)
            rows.append({**row, "intervals": intervals})
        rows.sort(key=lambda row: -(row["styled"] or -math.inf))
        for place, name in enumerate(self.style, models):
            row = {"table": "style effects", "method": name, "coefficient": None, "odds_ratio": None, "intervals": {}}
            if fit.determined[place]:
                low, high = fit.interval(place)
                row |= {"coefficient": rounded(float(fit.coefficients[place])), "odds_ratio": rounded(math.exp(fit.coefficients[place]))}
                row["intervals"] = {"coefficient": [rounded(low), rounded(high)], "odds_ratio": [rounded(math.exp(low)), rounded(math.exp(high))]}
            rows.append(row)
        return rows


def comparable(first: NDArray[np.int64], second: NDArray[np.int64], won: Values, models: int) -> NDArray[np.bool_]:
    """[models]: the most models of which each has won something against each other one, by itself or through others; games are [games], `won` by the first."""
    beat = np.eye(models, dtype=bool)
    beat[first[won > 0], second[won > 0]] = True
    beat[second[won < 1], first[won < 1]] = True
    for _ in range(models.bit_length()):
        beat = (beat.astype(np.float32) @ beat.astype(np.float32)) > 0
    both = beat & beat.T
    largest = both[int(both.sum(axis=1).argmax())]
    return largest if largest.sum() > 1 else np.zeros(models, bool)


def _points(fit: Fit, place: int) -> tuple[float, list[float]]:
    middle, half = float(fit.coefficients[place]) * SCALE + MEAN, Z * SCALE * math.sqrt(float(fit.covariance[place, place]))
    return round(middle, 1), [round(middle - half, 1), round(middle + half, 1)]
