"""What `evaluate` asks of judges beyond their verdicts: audits, corrected win rates, pairs to label, equal style, panels, and what quality costs."""

from __future__ import annotations

from blendkit.errors import DataError, RecordError, UsageError
from blendkit.evaluation.audit.auditing import JudgeAudit
from blendkit.evaluation.audit.corrected import CorrectedWinRates
from blendkit.evaluation.audit.files import Forms, check_folder, read_prices, write_forms
from blendkit.evaluation.audit.frontier import Frontier
from blendkit.evaluation.audit.label_next import LabelNext
from blendkit.evaluation.audit.labels import JUDGE
from blendkit.evaluation.audit.panel import Panel
from blendkit.evaluation.audit.style import CONTROLS
from blendkit.evaluation.audit.style_ratings import StyledRatings
from blendkit.evaluation.examples import Oracle, Verdicts
from blendkit.evaluation.judges import kind_of_judge
from blendkit.evaluation.tables import Rows
from blendkit.families import families_of_file
from blendkit.judges.base import PANEL
from blendkit.judges.dawid_skene import LEAST_JUDGES
from blendkit.records import Record
from blendkit.terminal_text import count_of, shown

HUMAN = "human"


class Trust:
    """Takes records with their verdicts; gives the rows of what was asked for, and keeps numbers of the records alone."""

    def __init__(
        self, oracle: Oracle, seed: int, *, panel: bool = False, audit: str | None = None, families: str | None = None, correct_with: str | None = None,
        label_next: str | None = None, label_count: int = 100, forms: str | None = None, control: str | None = None, frontier: str | None = None,
        prices: str | None = None,
    ) -> None:  # fmt: skip
        """The arguments are `blendkit.evaluate`'s; `oracle` is found while records are read, and `panel` asks for a panel's table.

        Raises:
            UsageError: an argument's value is none that there is, or an argument needs another.
            NoInputError: a file is not there.
            DataError: a file holds something else.
            OutputError: the folder of the forms is not there.
        """
        if families and not audit:
            raise UsageError(f"--families {families}: expected --audit FIELD with it, which looks whether a judge prefers its own family")
        if prices and not frontier:
            raise UsageError(f"--prices {prices}: expected --frontier RANKING with it, which sets quality against price")
        if forms and not (audit or correct_with or label_next):
            raise UsageError(f"--forms {forms}: expected --audit, --correct-with or --label-next with it, which take the labels")
        if label_next:
            check_folder(label_next)
        # Where people's labels stand.
        self.field = next((name for name in (correct_with, audit) if name and not name.startswith(JUDGE)), HUMAN)
        self.oracle, self.seed = oracle, seed
        self.correct_with, self.frontier, self.label_next = correct_with, frontier, label_next
        self.style = _style(control) if control else ()
        self.prices = read_prices(prices) if prices else {}
        self.forms = Forms(forms, self.field) if forms else None
        self.audit = JudgeAudit(audit, families_of_file(families) if families else None, seed) if audit else None
        self.chooser = LabelNext(label_count, self.field, seed) if label_next else None
        self.panel = Panel(labels=correct_with or audit) if panel else None
        self._panel_fault: str | None = None
        # Of the tables' judge, which is not known before the first verdicts.
        self._corrected: CorrectedWinRates | None = None
        self._styled: StyledRatings | None = None
        self._frontier: Frontier | None = None

    def add(self, record: Record, verdicts: Verdicts) -> None:
        """Takes a record and its `verdicts_of`.

        Raises:
            RecordError: labels are none, or what the frontier needs is missing.
            DataError: there are too many judges or models.
        """
        if self.forms is not None:
            record = self.forms.joined(record)
        if self.audit is not None:
            self.audit.add(record, verdicts)
        if self.panel is not None or self.chooser is not None:
            signatures = record.get("signatures", {})
            single = {name: rows for name, rows in verdicts.items() if kind_of_judge(name, signatures) != PANEL}
            self._add_to_panel(record, single)
            if self.chooser is not None:
                self.chooser.add(record, single or verdicts)
        self._add_judged(record, verdicts)

    @property
    def labels(self) -> str | None:
        """What decided the labelled tables, for the signature."""
        asked = dict.fromkeys(filter(None, (self.audit.labels if self.audit else None, self.correct_with)))
        return ",".join(asked) or None

    def _add_judged(self, record: Record, verdicts: Verdicts) -> None:
        judge = self.oracle.judge
        if judge is not None:
            if self.correct_with:
                if self._corrected is None:
                    self._corrected = CorrectedWinRates(judge, self.correct_with)
                self._corrected.add(record, verdicts)
            if self.style:
                if self._styled is None:
                    self._styled = StyledRatings(judge, self.style)
                self._styled.add(record, verdicts)
        if self.frontier:
            if self.oracle.name is None:
                raise RecordError(
                    "verdicts", "expected some, or --oracle SCORE, as --frontier measures quality by the oracle; `blendkit judge` writes verdicts"
                )
            if self._frontier is None:
                self._frontier = Frontier(self.frontier, self.oracle.name, self.prices, self.seed)
            self._frontier.add(record, verdicts)

    def _add_to_panel(self, record: Record, verdicts: Verdicts) -> None:
        if self.panel is None:
            return
        try:
            self.panel.add(record, verdicts)
        except RecordError:
            raise
        except DataError as error:
            # Nobody asked for a panel of so many: the other tables go on.
            self.panel, self._panel_fault = None, f"no table of the panel: {error}"

    def rows(self, notes: list[str]) -> Rows:
        """The tables `audit`, `confusion`, `effects`, `reliability`, `corrected`, `style`, `style effects` and `frontier`, as far as they were asked for.

        What a person should know goes into `notes`.
        """
        rows: Rows = []
        if self.audit is not None:
            found = self.audit.rows()
            rows += found
            of, labels = count_of(self.audit.labelled + self.audit.unlabelled, "record"), shown(self.audit.labels)
            if self.audit.unlabelled:
                notes.append(f"--audit {labels}: {self.audit.unlabelled:,} of {of} have no label, and are not in the audit")
            elif not any(row["table"] == "effects" for row in found):
                notes.append(f"--audit {labels}: no judge's verdict on a labelled pair; `blendkit judge` writes verdicts")
            if self.audit.uneven:
                uneven = f"--audit {labels}: the pairs of {self.audit.uneven:,} of {of} were drawn by doubt (their labels have weights)"
                notes.append(f"{uneven}; the audit tells of these pairs, which are harder than the stream's")
        if self.oracle.judge is None:
            flags = [flag for flag, given in (("--correct-with", self.correct_with), ("--control", self.style)) if given]
            if flags:
                notes.append(f"no judge's verdicts in the stream, which {' and '.join(flags)} would look at: run `blendkit judge` before")
        if self._corrected is not None:
            rows += self._corrected.rows(notes)
        if self._styled is not None:
            rows += self._styled.rows()
        if self._frontier is not None:
            rows += self._frontier.rows(notes)
        if self.forms is not None:
            notes += filter(None, [self.forms.note()])
        return rows

    def panel_rows(self, notes: list[str]) -> Rows:
        """The table `panel`, where there are enough judges to be told apart."""
        if self._panel_fault:
            notes.append(self._panel_fault)
        if self.panel is None or len(self.panel.judges) < LEAST_JUDGES:
            return []
        return self.panel.fitted().rows()

    def write_forms(self) -> list[str]:
        """Writes the forms that `label_next` asks for; returns lines for a person.

        Raises:
            OutputError: they cannot be written.
        """
        if self.chooser is None or not self.label_next:
            return []
        said = write_forms(self.label_next, self.chooser.forms(), self.field)
        if self.chooser.pairs < self.chooser.count:
            said.append(f"--label-next: {count_of(self.chooser.pairs, 'pair')} with a verdict and without a label, fewer than {self.chooser.count:,}")
        return said


def _style(control: str) -> tuple[str, ...]:
    """The names of STYLE that `length`, `markdown` or both of them mean."""
    asked = [name.strip() for name in control.split(",")]
    if unknown := [name for name in asked if name not in CONTROLS]:
        raise UsageError(f"--control {shown(control)}: expected {' or '.join(CONTROLS)}, or both with a comma, got {shown(unknown[0])!r}")
    return tuple(style for name in asked for style in CONTROLS[name])
