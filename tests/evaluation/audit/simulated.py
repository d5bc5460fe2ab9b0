"""Made-up streams whose truth is known: people's labels, and judges with biases of known size."""

from __future__ import annotations

import numpy as np

# Log-odds: of the label, of twice the length, of the judge's own family, of the first place; and the share of verdicts by place alone.
LABEL, LENGTH, OWN, PLACE, BY_PLACE = 1.5, 0.4, 0.8, 0.5, 0.2
MARKS = {"headers": "# h\n", "lists": "- i\n", "bold": "**b** "}


def biased_stream(seed: int, count: int, ties: float = 0.2) -> list[dict]:
    """Two models, of which one is of the family of judge `ours-judge`; each pair is judged in both orders.

    `ours-judge` decides by the label, its place, length and family, all in log-odds; `placer` takes the first place on BY_PLACE of its
    verdicts, and otherwise the label's on 80 %; `blind` guesses. Judges' `probability` is by what they decide.
    """
    g = np.random.default_rng(seed)
    label = np.where(g.random(count) < ties, 0, np.where(g.random(count) < 0.5, 1, -1))
    ours, sizes, counts = g.random(count) < 0.5, g.integers(40, 400, size=(count, 2)), g.integers(0, 4, size=(count, 2, 3))
    texts = []
    for number in range(count):
        made = []
        for side in (0, 1):
            marks = "".join(mark * int(times) for mark, times in zip(MARKS.values(), counts[number, side], strict=True))
            made.append(marks + "\n" + "x" * int(sizes[number, side]))
        texts.append(made)
    longer = np.array([np.log2(len(a) / len(b)) for a, b in texts])
    own = np.where(ours, 1, -1)
    records = []
    even = g.random((count, 2, 4))
    for number in range(count):
        rows: dict[str, list[dict]] = {"ours-judge": [], "placer": [], "blind": []}
        for turn, place in enumerate((1, -1)):
            logit = LABEL * label[number] / 2 + PLACE * place / 2 + LENGTH * longer[number] + OWN * own[number]
            p = float(1 / (1 + np.exp(-logit)))
            shown = [0, 1] if place == 1 else [1, 0]
            u = even[number, turn]
            rows["ours-judge"].append({"a": 0, "b": 1, "verdict": "A" if u[0] < p else "B", "shown": shown, "probability": p})
            right = 0.5 + 0.3 * label[number]
            a = place == 1 if u[1] < BY_PLACE else u[2] < right
            rows["placer"].append({"a": 0, "b": 1, "verdict": "A" if a else "B", "shown": shown})
            rows["blind"].append({"a": 0, "b": 1, "verdict": "A" if u[3] < 0.5 else "B", "shown": shown})
        models = ("ours-7b", "other-7b") if ours[number] else ("other-7b", "ours-7b")
        candidates = [{"model": model, "text": text} for model, text in zip(models, texts[number], strict=True)]
        records.append({"id": str(number), "candidates": candidates, "human": "BtA"[label[number] + 1].replace("t", "tie"), "verdicts": rows})
    return records
