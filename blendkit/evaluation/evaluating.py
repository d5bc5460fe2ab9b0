"""`evaluate`: turns the stream into the paper's Table 2 (methods) and Table 3 (agreement of rankers with the oracle), and what goes with them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blendkit.errors import BlendkitError, DataError, RecordError, UsageError, require
from blendkit.evaluation.agreement import Rankers
from blendkit.evaluation.answer import answer
from blendkit.evaluation.checks import expected, not_worse, outcomes, parsed, raise_failed
from blendkit.evaluation.comparing import compared_with, judges_differ, read_rows, worse
from blendkit.evaluation.examples import JudgedExample, Oracle, example_of
from blendkit.evaluation.formats import COLUMNS, FORMATS, JUNIT, rendered
from blendkit.evaluation.judges import Judges
from blendkit.evaluation.junit import junit
from blendkit.evaluation.length import length_table
from blendkit.evaluation.methods import Methods, table_2
from blendkit.evaluation.pairwise import PairwiseAgreement
from blendkit.evaluation.ratings import Firsts, ratings_of
from blendkit.evaluation.report.browser import Browser
from blendkit.evaluation.report.page import Made, make_folder, write_page
from blendkit.evaluation.report.plots import check_plot, save_plot
from blendkit.evaluation.stages import read_stages
from blendkit.evaluation.tables import Rows
from blendkit.evaluation.trust import Trust
from blendkit.names import Called, Divided
from blendkit.pipeline.stage import Stage
from blendkit.records import Record, verdicts_of
from blendkit.signature import Signature
from blendkit.terminal_text import count_of, listed, shown
from blendkit.version import VERSION

# All of them stand under the tables.
MOST_SIGNATURES = 1000
# Bad records that stand in JUnit's file one by one.
MOST_BAD = 1000


class Evaluating(Stage):
    """Collects examples; `rows` gives all tables as JSON objects; `write_page`, `draw` and `check` do what else was asked for."""

    name = "evaluate"
    passes_records = False

    def __init__(
        self, *, versus: Sequence[str] = (), oracle: str | None = None, agreement: str | None = None, baseline: str | None = None,
        seed: int = 0, ratings: bool = False, length_controlled: str | None = None, aggregations: bool = False,
        manifests: Sequence[str] = (), compare: str | None = None, checks: Sequence[str] = (),
        expect: int | None = None, fail_if_worse: str | None = None, report: str | None = None,
        report_records: int = 500, plot: str | None = None, audit: str | None = None, families: str | None = None,
        correct_with: str | None = None, label_next: str | None = None, label_count: int = 100, forms: str | None = None,
        control: str | None = None, frontier: str | None = None, prices: str | None = None,
        form: str = "json", intervals: bool = False,
    ) -> None:  # fmt: skip
        """All arguments but the last two are `blendkit.evaluate`'s.

        `form` is how `ending` writes the tables: one of `evaluation.formats.FORMATS`, with `intervals` or without, or its COLUMNS.

        Raises:
            UsageError: an argument's value is none that there is, or a library is missing.
            NoInputError: a file that is read is not there.
            DataError: a file that is read holds something else.
            OutputError: the page's, the plot's or the forms' folder cannot be written.
        """
        if form not in (*FORMATS, COLUMNS):
            raise UsageError(f"--format {form}: expected one of {', '.join(FORMATS)}")
        if compare and fail_if_worse and compare != fail_if_worse:
            raise UsageError(f"--compare {compare}, --fail-if-worse {fail_if_worse}: expected one earlier run, got two")
        self.checks = [parsed(check) for check in checks]
        for check in self.checks:
            if check.needs_earlier and not (compare or fail_if_worse):
                raise UsageError(f"--assert {check.text}: expected --compare FILE or --fail-if-worse FILE with it, which give the earlier run")
        if length_controlled:
            require("sklearn", "stats", "--length-controlled", "scikit-learn")
        if report:
            require("matplotlib", "plots", "--report")
            make_folder(report)
        if plot:
            check_plot(plot)
        self.versus, self.oracle, self.baseline, self.seed = list(versus), Oracle.named(oracle), baseline, seed
        self.aggregations, self.controlled, self.form, self.intervals = aggregations, length_controlled, form, intervals
        self.expect, self.fail_if_worse, self.report, self.plot = expect, fail_if_worse, report, plot
        # The page shows all there is, also what was not asked for elsewhere.
        self.asked, self.ratings = ratings, ratings or report is not None
        self.earlier = read_rows(fail_if_worse, "--fail-if-worse") if fail_if_worse else read_rows(compare) if compare else None
        self.stages = read_stages(list(manifests))
        self.browser = Browser(report_records) if report else None
        self.agreement = PairwiseAgreement(agreement) if agreement else None
        self.trust = Trust(
            self.oracle, seed, panel=self.ratings, audit=audit, families=families, correct_with=correct_with, label_next=label_next,
            label_count=label_count, forms=forms, control=control, frontier=frontier, prices=prices,
        )  # fmt: skip
        self.judges, self.divided = Judges(everyone=self.ratings), Divided()
        self.signatures: dict[str, set[str]] = {}
        self.methods, self.rankers, self.firsts = Methods(self.oracle, self.versus), Rankers(self.oracle), Firsts()
        self.count = self._signed = 0
        # Records and pairs of which no verdict of the judge could be read, and all its pairs.
        self._left_out = self._unread = self._pairs = 0
        # Whole examples are kept only for the tables that look at all of them together.
        self.examples: list[JudgedExample] = []
        self.notes: list[str] = []
        self._page_notes: list[str] = []
        self._only_page: Rows = []
        self._rows: Rows | None = None
        self._errors: list[BlendkitError] = []
        self._bad: list[tuple[str, str]] = []
        self._more_bad = 0

    def finish(self, record: Record, results: list[object]) -> None:
        """Takes what the tables need.

        Raises:
            RecordError: something that an argument asks for is not there.
        """
        verdicts = verdicts_of(record)
        example = example_of(record, verdicts, self.count, self.oracle, self.aggregations, self.seed)
        self._find_named(record, example)
        self.divided.add(record["candidates"], example.methods)
        if self.agreement is not None:
            self.agreement.add(record)
        signatures = record.get("signatures", {})
        self.judges.add(verdicts, signatures, self.oracle.judge)
        self.trust.add(record, verdicts)
        for name, signature in signatures.items():
            self._note_signature(name, signature)
        for table in (self.methods, self.rankers, self.firsts):
            table.add(example)
        self.count += 1
        self._left_out += example.left_out
        self._unread += len(example.unread)
        self._pairs += example.pairs
        if self.ratings or self.controlled:
            self.examples.append(example)
        if self.browser is not None:
            self.browser.add(record, example)

    def _find_named(self, record: Record, example: JudgedExample) -> None:
        """The record's candidates that `versus` and `length_controlled` name."""
        if not self.versus and not self.controlled:
            return
        called = Called(record["candidates"], example.methods)
        for model in self.versus:
            if model not in called:
                raise RecordError("candidates", f"--versus {shown(model)}: no candidate of that model; there are {listed(called.methods)}")
            example.against[model] = called.place(model, f"--versus {shown(model)}")
        if self.controlled and self.controlled in called:
            example.against[self.controlled] = called.place(self.controlled, f"--length-controlled {shown(self.controlled)}")

    def skipped(self, place: str, problem: str) -> None:
        """Keeps it for JUnit's file, up to MOST_BAD of them."""
        if len(self._bad) < MOST_BAD:
            self._bad.append((place, problem))
        else:
            self._more_bad += 1

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
            worth = self.judges.worth(self.oracle.judge, is_oracle=self.oracle.score is None)
            self.methods.name_judge(worth)
            rows = [answer(self.methods, worth, self.seed), *([worth] if worth else []), *table_2(self.methods, self.seed, self.notes, self.baseline)]
            self._note_unread()
            self.notes += filter(None, [self.divided.note()])
            if self.oracle.name is None:
                self.notes.append(
                    "no judge's verdicts in the stream, so no judge's ranks and no Table 3: run `blendkit judge` before, or let a score be the oracle"
                )
            else:
                rows += [*self.rankers.rows(), *self.firsts.rows(self.seed)]
            self._note_no_verdicts()
            rated = self._ratings()
            self._only_page = [] if self.asked else rated
            rows += [*self._agreements(), *(rated if self.asked else []), *self._at_equal_length(), *self.trust.rows(self.notes), *self.stages]
            if self.earlier is not None:
                self.notes += filter(None, [judges_differ(self.earlier, rows)])
                rows += compared_with(self.earlier, rows)
            checked, self._errors = outcomes(self.checks, rows, self.earlier)
            checked += [expected(self.expect, self.count)] if self.expect is not None else []
            checked += [not_worse(self.fail_if_worse, worse(self.earlier, rows))] if self.fail_if_worse and self.earlier is not None else []
            self._rows = [*rows, *checked]
        return self._rows

    def _note_unread(self) -> None:
        judge = shown(str(self.oracle.judge))
        if self._unread:
            counts = "it counts for nothing, not as a tie" if self._unread == 1 else "they count for nothing, not as ties"
            self.notes.append(f"judge:{judge}: no verdict on {self._unread:,} of {count_of(self._pairs, 'pair')} could be read; {counts}")
        if self._left_out:
            what = f"judge:{judge}: in {self._left_out:,} of {count_of(self.count, 'record')} a candidate is in no verdict that could be read"
            self.notes.append(f"{what}; its ranks, and what is computed of them, leave {'this record' if self._left_out == 1 else 'these records'} out")

    def _note_no_verdicts(self) -> None:
        flags = [flag for flag, given in (("--ratings", self.asked), ("--length-controlled", self.controlled)) if given]
        if flags and self.oracle.judge is None:
            self.notes.append(f"no judge's verdicts in the stream, which {' and '.join(flags)} would look at: run `blendkit judge` before")

    def _ratings(self) -> Rows:
        """Ratings, win rates and the judges' own figures, for the tables or for the page alone."""
        if not self.ratings or self.oracle.judge is None:
            return []
        notes = self.notes if self.asked else self._page_notes
        return [*ratings_of(self.examples, self.seed, notes), *self.judges.rows(), *self.trust.panel_rows(notes)]

    def _at_equal_length(self) -> Rows:
        return length_table(self.examples, self.controlled, self.seed) if self.controlled and self.oracle.judge is not None else []

    def _agreements(self) -> Rows:
        if self.agreement is None:
            return []
        if ties := self.agreement.ties:
            tied = f"{ties:,} of {count_of(self.count, 'pair')} {'is a tie' if ties == 1 else 'are ties'} by {shown(self.agreement.name)}"
            self.notes.append(f"{tied}, and left out of the agreement")
        return self.agreement.rows()

    def signature(self) -> str:
        """What decided the tables."""
        judge = self.oracle.judge if self.oracle.score else None
        return str(Signature("evaluate", oracle=self.oracle.name or "none", judge=judge or None, examples=self.count, labels=self.trust.labels, v=VERSION))

    def score_signatures(self) -> list[str]:
        """`name: signature` of what the stream's scores say decided them; more than one where records differ."""
        return [f"{name}: {' and '.join(sorted(found))}" for name, found in self.signatures.items()]

    def all_signatures(self) -> list[str]:
        """What decided the tables, and what decided each score."""
        return [self.signature(), *self.score_signatures()]

    def ending(self) -> bytes:
        """The tables in the form that was asked for; `table` is for a person, and the command prints it."""
        if self.form == "json":
            return super().ending()
        rows = self.rows()  # also for a table, so that the notes are all there when the run ends
        if self.form == JUNIT:
            more = [(f"{self._more_bad:,} more bad records", "skipped, too; --rejects FILE keeps them")] if self._more_bad else []
            return junit([row for row in rows if row["table"] == "checks"], [*self._bad, *more], self.all_signatures())
        return b"" if self.form == "table" else rendered(rows, self.form, self.all_signatures(), self.intervals).encode()

    def write_page(self, data: str = "records", command: str = "blendkit.evaluate") -> Path | None:
        """Writes the page that `report` asks for, headed by what was read and by what command; returns its path.

        Raises:
            OutputError: it cannot be written.
        """
        if not self.report or self.browser is None:
            return None
        rows = [*self.rows(), *self._only_page]
        made = Made(data, command, datetime.now(UTC), self.count)
        return write_page(self.report, made, rows, self.all_signatures(), [*self.warnings(), *self._page_notes], self.browser)

    def draw(self) -> None:
        """Draws the figures that `plot` asks for. Raises OutputError when that cannot be."""
        if self.plot:
            save_plot(self.rows(), self.plot)

    def write_forms(self) -> list[str]:
        """Writes the forms that `label_next` asks for; returns lines for a person. Raises OutputError when that cannot be."""
        return self.trust.write_forms()

    def check(self) -> None:
        """Raises CheckFailed where `checks`, `expect` or `fail_if_worse` do not hold; UsageError or DataError where one cannot be answered."""
        raise_failed([row for row in self.rows() if row["table"] == "checks"], self._errors)

    def describe(self) -> dict[str, Any]:
        """The signatures, its own first."""
        return {"signatures": self.all_signatures()}

    def warnings(self) -> list[str]:
        """Notes on what is missing."""
        return list(dict.fromkeys(self.notes))
