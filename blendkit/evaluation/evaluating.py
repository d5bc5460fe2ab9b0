"""`evaluate`: the stream into the paper's Table 2 (methods) and Table 3 (agreement of rankers with the oracle), and what goes with them."""

from __future__ import annotations

from typing import Any

from blendkit.errors import DataError, RecordError
from blendkit.evaluation.agreement import Rankers
from blendkit.evaluation.checks import compare
from blendkit.evaluation.examples import Example, Oracle, example_of
from blendkit.evaluation.formats import rendered
from blendkit.evaluation.judges import Judges
from blendkit.evaluation.length import length_controlled
from blendkit.evaluation.methods import Methods, table_2
from blendkit.evaluation.pairwise import PairwiseAgreement
from blendkit.evaluation.ratings import Firsts, ratings_of
from blendkit.evaluation.report.browser import Browser
from blendkit.pipeline.stage import Stage
from blendkit.records import Record, verdicts_of
from blendkit.signature import Signature
from blendkit.version import VERSION

Rows = list[dict[str, Any]]
# All of them stand under the tables.
MOST_SIGNATURES = 1000


class Evaluating(Stage):
    """Collects examples; `rows` gives all tables as JSON objects.

    `oracle` is `judge:NAME`, `score:NAME` or the NAME of a score; None takes the judge in the stream, MixInstruct's first.
    `baseline` names a method that all others are tested against, `earlier` are the rows of another run to compare with,
    `controlled` a model for length-controlled win rates, `stages` rows of earlier stages' manifests, and `form` is how
    `ending` writes the tables (`evaluation.formats`; `intervals`: with their intervals). `browser` keeps records for the
    page.
    """

    name = "evaluate"
    passes_records = False

    def __init__(
        self, versus: list[str], oracle: str | None = None, agreement: str | None = None, *, baseline: str | None = None,
        seed: int = 0, earlier: Rows | None = None, form: str = "json", intervals: bool = False, ratings: bool = False,
        aggregations: bool = False, controlled: str | None = None, stages: Rows | None = None, browser: Browser | None = None,
    ) -> None:  # fmt: skip
        self.versus, self.oracle, self.baseline, self.seed = versus, Oracle.named(oracle), baseline, seed
        self.earlier, self.form, self.intervals, self.ratings = earlier, form, intervals, ratings
        self.aggregations, self.controlled, self.stages, self.browser = aggregations, controlled, stages or [], browser
        self.agreement = PairwiseAgreement(agreement) if agreement else None
        self.judges = Judges()
        self.signatures: dict[str, set[str]] = {}
        self.methods, self.rankers, self.firsts = Methods(self.oracle, versus), Rankers(self.oracle), Firsts()
        self.count = self._signed = 0
        # Whole examples are kept only for the tables that look at all of them together.
        self.examples: list[Example] = []
        self.notes: list[str] = []
        self._rows: Rows | None = None

    def finish(self, record: Record, results: list[object]) -> None:
        """Takes what the tables need.

        Raises:
            RecordError: something that a flag asks for is not there.
        """
        example = example_of(record, self.count, self.oracle, self.aggregations, self.seed)
        for model in self.versus:
            if model not in example.models:
                raise RecordError("candidates", f"--versus {model}: no candidate of that model; there are {', '.join(dict.fromkeys(example.models))}")
        if self.agreement is not None:
            self.agreement.add(record)
        if self.ratings:
            self.judges.add(verdicts_of(record))
        for name, signature in record.get("signatures", {}).items():
            self._note_signature(name, signature)
        for table in (self.methods, self.rankers, self.firsts):
            table.add(example)
        self.count += 1
        if self.ratings or self.controlled:
            self.examples.append(example)
        if self.browser is not None:
            self.browser.add(record, example)

    def _note_signature(self, name: str, signature: str) -> None:
        found = self.signatures.setdefault(name, set())
        if signature not in found:
            found.add(signature)
            self._signed += 1
            if self._signed > MOST_SIGNATURES:
                raise DataError(
                    f"more than {MOST_SIGNATURES:,} signatures, with {name!r} of record {self.count + 1}: do records bring signatures of their own?"
                )

    def rows(self) -> Rows:
        """Table 2, Table 3, and what was asked for. Raises DataError when there was no record."""
        if not self.count:
            raise DataError("no records to evaluate: the input is empty")
        if self._rows is None:
            rows = table_2(self.methods, self.seed, self.notes, self.baseline)
            if self.oracle.name is None:
                self.notes.append("no judge's verdicts in the stream, so no GPT-Rank and no Table 3: run `blendkit judge` before, or name --oracle SCORE")
            else:
                rows += [*self.rankers.rows(), *self.firsts.rows()]
            rows += [*self._agreements(), *self._of_verdicts(), *self.stages]
            self._rows = rows + compare(self.earlier, rows) if self.earlier is not None else rows
        return self._rows

    def _of_verdicts(self) -> Rows:
        """Ratings, win rates, length-controlled win rates and the judges' own figures, where they were asked for."""
        if not self.ratings and not self.controlled:
            return []
        if self.oracle.judge is None:
            self.notes.append("--ratings and --length-controlled need a judge's verdicts: run `blendkit judge` before, or name --oracle judge:NAME")
            return []
        found = [*ratings_of(self.examples, self.seed, self.notes), *self.judges.rows()] if self.ratings else []
        return [*found, *(length_controlled(self.examples, self.controlled, self.seed) if self.controlled else [])]

    def _agreements(self) -> Rows:
        if self.agreement is None:
            return []
        if self.agreement.ties:
            self.notes.append(f"{self.agreement.ties} of {self.count} pairs are a tie by {self.agreement.name}, and are left out of the agreement")
        return self.agreement.rows()

    def signature(self) -> str:
        """What decided the tables."""
        judge = self.oracle.judge if self.oracle.score else None
        return str(Signature("evaluate", oracle=self.oracle.name or "none", judge=judge or None, examples=self.count, v=VERSION))

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
        rows = self.rows()  # also for a table, so that the notes are all there when the run ends
        return b"" if self.form == "table" else rendered(rows, self.form, self.all_signatures(), self.intervals).encode()

    def describe(self) -> dict[str, Any]:
        """The signatures, its own first."""
        return {"signatures": self.all_signatures()}

    def warnings(self) -> list[str]:
        """Notes on what is missing."""
        return list(dict.fromkeys(self.notes))
