"""`evaluate`: the stream into the paper's Table 2 (methods) and Table 3 (agreement of rankers with the oracle)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from blendkit.aggregate import Matrix, max_logits, ranks_from_scores, verdict_matrix
from blendkit.errors import DataError, RecordError, UsageError
from blendkit.evaluation import agreement
from blendkit.evaluation.checks import compare
from blendkit.evaluation.formats import rendered
from blendkit.evaluation.pairwise import PairwiseAgreement
from blendkit.evaluation.ratings import Tournament
from blendkit.evaluation.statistics import bootstrap, holm, randomization
from blendkit.records import Record, candidates_of, generated_only, verdicts_of
from blendkit.scorers import better_when_lower
from blendkit.stage import Stage
from blendkit.version import VERSION


@dataclass
class Example:
    """What the tables need of one record; its texts are gone."""

    models: list[str]
    generated: list[int]
    scores: list[dict[str, float | None]]
    ranks: dict[str, list[int]]
    oracle: list[int] | None
    oracle_of_fused: dict[int, int]
    not_worse: Matrix | None
    number: int = 0


@dataclass
class Method:
    """One row of Table 2: which candidate (by index) it puts forward in which example."""

    name: str
    kind: str
    picks: list[tuple[Example, int]] = field(default_factory=list)


class Evaluating(Stage):
    """Collects examples; `rows` gives both tables as JSON objects.

    `baseline` names a method that all others are tested against, `earlier` are the rows of another run to compare with,
    and `form` is how `ending` writes the tables (`evaluation.formats`; `intervals`: with their intervals).
    `oracle` is `judge:NAME` or `score:NAME`; None takes the judge in the stream, MixInstruct's first.
    """

    name = "evaluate"
    passes_records = False

    def __init__(
        self, versus: list[str], oracle: str | None = None, agreement: str | None = None, *, baseline: str | None = None,
        seed: int = 0, earlier: list[dict[str, Any]] | None = None, form: str = "json", intervals: bool = False, ratings: bool = False,
    ) -> None:  # fmt: skip
        if oracle and not oracle.startswith(("judge:", "score:")):
            raise UsageError(f"--oracle {oracle}: expected judge:NAME or score:NAME")
        self.earlier, self.form, self.intervals = earlier, form, intervals
        self.tournament = Tournament() if ratings else None
        self.versus, self.oracle, self.baseline, self.seed = versus, oracle, baseline, seed
        self.agreement = PairwiseAgreement(agreement) if agreement else None
        self.signatures: dict[str, set[str]] = {}
        self.examples: list[Example] = []
        self.notes: list[str] = []
        self._rows: list[dict[str, Any]] | None = None

    def finish(self, record: Record, results: list[object]) -> None:
        """Takes what the tables need."""
        candidates = candidates_of(record)
        generated = generated_only(candidates)
        if not generated:
            raise RecordError("candidates", "expected at least one that an LLM wrote, got fused ones only")
        names = verdicts_of(record)
        if self.oracle is None and names:
            self.oracle = "judge:" + ("mixinstruct" if "mixinstruct" in names else next(iter(names)))
        models = [candidate["model"] for candidate in candidates]
        for model in self.versus:
            if model not in models:
                raise RecordError("candidates", f"--versus {model}: no candidate of that model; there are {', '.join(dict.fromkeys(models))}")
        oracle, fused, not_worse = self._oracle_ranks(record, generated)
        ranks = {name: values for name, values in record.get("ranks", {}).items() if len(values) == len(generated)}
        scores = [candidate.get("scores", {}) for candidate in candidates]
        if self.agreement is not None:
            self.agreement.add(record)
        if self.tournament is not None and not_worse is not None:
            self.tournament.add(models, not_worse)
        for name, signature in record.get("signatures", {}).items():
            self.signatures.setdefault(name, set()).add(signature)
        self.examples.append(Example(models, generated, scores, ranks, oracle, fused, not_worse, len(self.examples)))

    def _oracle_ranks(self, record: Record, generated: list[int]) -> tuple[list[int] | None, dict[int, int], Matrix | None]:
        """Ranks of the generated candidates among themselves, and of each fused one among them and itself."""
        if self.oracle is None:
            return None, {}, None
        kind, _, name = self.oracle.partition(":")
        candidates = record["candidates"]
        if kind == "score":
            values = [candidate.get("scores", {}).get(name) for candidate in candidates]
            if any(values[k] is None for k in generated):
                raise RecordError(f"candidates[].scores.{name}", "expected a number in every candidate, as --oracle asks for it")
            ranks, fused = self._ranked(generated, lambda chosen: [values[k] for k in chosen], [k for k, v in enumerate(values) if v is not None])
            return ranks, fused, None
        verdicts = verdicts_of(record)
        if name not in verdicts:
            raise RecordError(f"verdicts.{name}", f"not there, found {', '.join(verdicts) or 'none'}; `blendkit judge` writes verdicts")
        m = verdict_matrix(verdicts[name], len(candidates))
        judged = {k for verdict in verdicts[name] for k in (verdict["a"], verdict["b"])} | set(generated)
        ranks, fused = self._ranked(generated, lambda chosen: list(max_logits(m[np.ix_(chosen, chosen)])), sorted(judged))
        margin = m - m.T
        unseen = ~np.eye(len(m), dtype=bool)
        for verdict in verdicts[name]:
            unseen[verdict["a"], verdict["b"]] = unseen[verdict["b"], verdict["a"]] = False
        margin[unseen] = np.nan
        return ranks, fused, margin

    @staticmethod
    def _ranked(generated: list[int], scores_of: Any, judged: list[int]) -> tuple[list[int], dict[int, int]]:
        ranks = ranks_from_scores(scores_of(generated))
        others = [k for k in judged if k not in generated]
        return ranks, {k: ranks_from_scores(scores_of([*generated, k]))[-1] for k in others}

    def rows(self) -> list[dict[str, Any]]:
        """Table 2, then Table 3. Raises DataError when there was no record."""
        if not self.examples:
            raise DataError("no records to evaluate: the input is empty")
        if self._rows is None:
            found = [metric for example in self.examples for scores in example.scores for metric, value in scores.items() if value is not None]
            metrics = list(dict.fromkeys(found))
            self._rows = [*self._table2(metrics), *self._table3(metrics), *self._agreements(), *self._ratings()]
            if self.earlier is not None:
                self._rows += compare(self.earlier, self._rows)
        return self._rows

    def _methods(self, metrics: list[str]) -> list[Method]:
        methods: dict[tuple[str, str], Method] = {}

        def pick(kind: str, name: str, example: Example, index: int) -> None:
            methods.setdefault((kind, name), Method(name, kind)).picks.append((example, index))

        for example in self.examples:
            for index, model in enumerate(example.models):
                pick("model" if index in example.generated else "fused", model, example, index)
            for name, ranks in example.ranks.items():
                pick("ranker", name, example, example.generated[int(np.argmin(ranks))])
            for metric in metrics:
                values = [example.scores[k].get(metric) for k in example.generated]
                if all(value is not None for value in values):
                    pick("oracle", f"oracle ({metric})", example, example.generated[int(np.argmax(_oriented(metric, values)))])
            if example.oracle is not None:
                pick("oracle", "oracle (GPT-Rank)", example, example.generated[int(np.argmin(example.oracle))])
        order = ("model", "oracle", "ranker", "fused")
        return sorted(methods.values(), key=lambda method: (order.index(method.kind), _mean_rank(method)))

    def _table2(self, metrics: list[str]) -> list[dict[str, Any]]:
        methods = self._methods(metrics)
        cells = [self._cells(method, metrics) for method in methods]
        # Each column of the matrix is one cell of the table, its values over all examples.
        keys = [(number, column) for number, columns in enumerate(cells) for column in columns]
        matrix = np.stack([cells[number][column] for number, column in keys], axis=1) if keys else np.empty((len(self.examples), 0))
        bounds = dict(zip(keys, bootstrap(matrix, self.seed).tolist(), strict=True))
        rows = []
        for number, (method, columns) in enumerate(zip(methods, cells, strict=True)):
            row: dict[str, Any] = {"table": 2, "method": method.name, "kind": method.kind, "examples": len(method.picks)}
            intervals: dict[str, list[float | None]] = {}
            for column, values in columns.items():
                missing = len(method.picks) - int((~np.isnan(values)).sum())
                if missing and column in metrics:
                    self.notes.append(
                        f"{column} is missing for {method.name} in {missing} of {len(method.picks)} examples, "
                        "so its mean is not shown; `blendkit score` writes it"
                    )
                row[column] = None if missing else _rounded(float(np.nanmean(values)))
                if not missing:
                    intervals[column] = [_rounded(bound) for bound in bounds[number, column]]
            rows.append({**row, "intervals": intervals})
        return [*rows, *self._tests(methods, cells)]

    def _tests(self, methods: list[Method], cells: list[dict[str, Matrix]]) -> list[dict[str, Any]]:
        """Each method against the baseline, column by column, over the examples that both have."""
        if self.baseline is None:
            return []
        base = next((number for number, method in enumerate(methods) if method.name == self.baseline), None)
        if base is None:
            raise UsageError(f"--baseline {self.baseline}: no such method; there are {', '.join(method.name for method in methods)}")
        keys = [(number, column) for number in range(len(methods)) if number != base for column in cells[number] if column in cells[base]]
        differences = np.stack([cells[number][column] - cells[base][column] for number, column in keys], axis=1)
        defined = np.asarray(~np.isnan(differences).all(axis=0))
        keys = [key for key, there in zip(keys, defined, strict=True) if there]
        differences = differences[:, defined]
        bounds, p = bootstrap(differences, self.seed), randomization(differences, self.seed)
        rows = []
        for place, ((number, column), corrected) in enumerate(zip(keys, holm(p), strict=True)):
            row: dict[str, Any] = {"table": "tests", "method": methods[number].name, "kind": methods[number].kind, "baseline": self.baseline, "column": column}
            row |= {"examples": int((~np.isnan(differences[:, place])).sum()), "difference": _rounded(float(np.nanmean(differences[:, place])))}
            low, high = (_rounded(bound) for bound in bounds[place].tolist())
            rows.append({**row, "low": low, "high": high, "p": round(float(p[place]), 6), "p_holm": round(float(corrected), 6)})
        return rows

    def _cells(self, method: Method, metrics: list[str]) -> dict[str, Matrix]:
        """The method's values by column, each [examples], NaN where it put nothing forward or a value is missing."""
        columns: dict[str, Matrix] = {}

        def fill(column: str, value_of: Callable[[Example, int], float | None]) -> None:
            values = np.full(len(self.examples), np.nan)
            for example, index in method.picks:
                value = value_of(example, index)
                values[example.number] = np.nan if value is None else value
            columns[column] = values

        for metric in metrics:
            fill(metric, lambda example, index, metric=metric: example.scores[index].get(metric))  # type: ignore[misc]
        if self.oracle is not None:
            fill("gpt_rank", _oracle_rank)
            for model in self.versus:
                fill(f"not_worse_than_{model}", lambda example, index, model=model: _not_worse(example, index, model))  # type: ignore[misc]
            fill("top3", lambda example, index: None if (rank := _oracle_rank(example, index)) is None else 100.0 * (rank <= 3))
        return columns

    def _table3(self, metrics: list[str]) -> list[dict[str, Any]]:
        if self.oracle is None:
            self.notes.append("no judge's verdicts in the stream, so no GPT-Rank and no Table 3: run `blendkit judge` before, or name --oracle score:NAME")
            return []
        rankings: dict[str, list[tuple[list[int], Example]]] = {}
        for example in self.examples:
            for name, ranks in example.ranks.items():
                rankings.setdefault(name, []).append((ranks, example))
            for metric in metrics:
                values = [example.scores[k].get(metric) for k in example.generated]
                name = f"score:{metric}"
                if name not in example.ranks and all(value is not None for value in values):
                    rankings.setdefault(name, []).append((ranks_from_scores(_oriented(metric, values).tolist()), example))
        rows = [self._agreement(name, found) for name, found in rankings.items() if name != self.oracle]
        return sorted(rows, key=lambda row: -(row["spearman_per_example"] or -2))

    def _ratings(self) -> list[dict[str, Any]]:
        if self.tournament is None:
            return []
        if not (self.oracle or "").startswith("judge:"):
            self.notes.append("--ratings need a judge's verdicts: run `blendkit judge` before, or name --oracle judge:NAME")
            return []
        firsts: dict[str, list[float]] = {}
        for example in self.examples:
            for place, index in enumerate(example.generated):
                firsts.setdefault(example.models[index], []).append(100.0 * (example.oracle is not None and example.oracle[place] == 1))
        return self.tournament.rows(((model, round(float(np.mean(values)), 2)) for model, values in firsts.items()), self.seed)

    def _agreements(self) -> list[dict[str, Any]]:
        if self.agreement is None:
            return []
        if self.agreement.ties:
            self.notes.append(f"{self.agreement.ties} of {len(self.examples)} pairs are a tie by {self.agreement.name}, and are left out of the agreement")
        return self.agreement.rows()

    @staticmethod
    def _agreement(name: str, found: list[tuple[list[int], Example]]) -> dict[str, Any]:
        hypothesis = [ranks for ranks, _ in found]
        oracle = [example.oracle or [] for _, example in found]
        row: dict[str, Any] = {"table": 3, "method": name, "examples": len(found)}
        row["spearman_per_example"] = _rounded(100 * agreement.spearman_per_example(hypothesis, oracle))
        models = {tuple(example.models[k] for k in example.generated) for _, example in found}
        if len(models) == 1:
            # The reference's numbers compare one model over the examples, so all must have the same models.
            h, o = np.asarray(hypothesis, float), np.asarray(oracle, float)
            row["pearson"] = _rounded(100 * agreement.pearson(h, o))
            row["spearman"] = _rounded(100 * agreement.spearman(h, o))
            row["footrule"] = _rounded(agreement.footrule(h, o))
        return row

    def signature(self) -> str:
        """What decided the tables."""
        return f"evaluate|oracle:{self.oracle or 'none'}|examples:{len(self.examples)}|v:{VERSION}"

    def score_signatures(self) -> list[str]:
        """`name: signature` of what the stream's scores say decided them; more than one where records differ."""
        return [f"{name}: {' and '.join(sorted(found))}" for name, found in self.signatures.items()]

    def all_signatures(self) -> list[str]:
        """What decided the tables, and what decided each score."""
        return [self.signature(), *self.score_signatures()]

    def ending(self) -> bytes:
        """The tables in the form that was asked for; `table` is for a person, and printed elsewhere."""
        if self.form == "json":
            return super().ending()
        return b"" if self.form == "table" else rendered(self.rows(), self.form, self.all_signatures(), self.intervals).encode()

    def describe(self) -> dict[str, Any]:
        """The signatures, its own first."""
        return {"signatures": self.all_signatures()}

    def warnings(self) -> list[str]:
        """Notes on what is missing."""
        return list(dict.fromkeys(self.notes))


def _oracle_rank(example: Example, index: int) -> float | None:
    """A candidate's rank under the judge; a fused one's among the LLMs' and itself."""
    if example.oracle is None:
        return None
    return example.oracle[example.generated.index(index)] if index in example.generated else example.oracle_of_fused.get(index)


def _mean_rank(method: Method) -> float:
    ranks = [_oracle_rank(example, index) for example, index in method.picks]
    known = [rank for rank in ranks if rank is not None]
    return float(np.mean(known)) if len(known) == len(ranks) else math.inf


def _not_worse(example: Example, index: int, model: str) -> float | None:
    """100 where the judge does not prefer the baseline's answer, else 0."""
    baseline = example.models.index(model)
    if example.not_worse is not None:
        margin = float(example.not_worse[index, baseline])
        return None if math.isnan(margin) else 100.0 * (margin >= 0)
    if example.oracle is not None and index in example.generated and baseline in example.generated:
        places = example.generated.index(index), example.generated.index(baseline)
        return 100.0 * (example.oracle[places[0]] <= example.oracle[places[1]])
    return None


def _oriented(metric: str, values: list[float | None]) -> Matrix:
    """Scores, turned so that higher is better."""
    return np.asarray(values, float) * (-1 if better_when_lower(metric) else 1)


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)
