"""The training sets of a ranker, as one mixture: python ranker_data.py DATA FOLDER [SEED].

Reads the files of DATA (its README says what each is) and writes to FOLDER

- train.jsonl.gz: records whose candidates have a score `oracle`, each with the name of its `set`, for `blendkit train ranker --label oracle --mix set`;
- held.jsonl.gz: the same of a tenth of the instructions, which are in no set of train.jsonl.gz, at most eleven candidates
  each; the first n records are of all sets alike;
- pool.jsonl.gz: every instruction that is not held out with all of its answers, labelled or not, for distillation.

`oracle` is in log-odds or near to it: a difference of 2 is to be 88 % sure. Scores of different sets are never in one record. What shares an
instruction with dev or autoj_pairs is left out. The sets hard_… are made here: a plain right answer against one that is
longer and off the instruction, drops a constraint, is cut off, or is padded.
"""

from __future__ import annotations

import gzip
import hashlib
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import combinations, zip_longest
from pathlib import Path
from typing import Any

import orjson

from blendkit.records import source_text
from blendkit.training.examples import log_odds

Record = dict[str, Any]
# A judge's verdict, and that a made-up fault is one, in log-odds.
JUDGED, MADE = 1.5, 3.0
# Characters of x: a longer chat is cut before its last turn, a longer instruction before its end.
LONGEST_CHAT, LONGEST = 1_200, 4_000
EVALUATION = ("dev", "autoj_pairs")
MEASURED = 11


def read(path: Path) -> list[Record]:
    """The records of a file."""
    with gzip.open(path, "rb") as file:
        return [orjson.loads(line) for line in file]


def instruction_of(record: Record) -> str:
    """What two records share that ask the same: the words of the instruction, of a chat those of its first turn."""
    first = re.split(r"\n\s*\nAssistant:", record["instruction"].removeprefix("User: "))[0]
    return " ".join(re.findall(r"\w+", first.lower()))


def is_held_out(instruction: str) -> bool:
    """Whether the instruction is of the tenth that nothing trains on, whatever set it stands in."""
    return hashlib.sha256(instruction.encode()).digest()[0] < 26


def made(record: Record, name: str, number: object, scored: Iterable[tuple[str, float]], instruction: str | None = None) -> Record:
    """A training record of texts and scores."""
    candidates = [{"model": str(k), "text": text, "scores": {"oracle": round(score, 4)}} for k, (text, score) in enumerate(scored)]
    asked = {"instruction": record["instruction"] if instruction is None else instruction, "input": record.get("input") or ""}
    return {"id": f"{name}/{number}", "set": name, **asked, "candidates": candidates}


# --- labels


def by_score(name: str, key: str, oracle: Callable[[float], float]) -> Callable[[list[Record]], Iterator[Record]]:
    """Lists by one score."""

    def records(given: list[Record]) -> Iterator[Record]:
        for record in given:
            scored = [(c["text"], oracle(c["scores"][key])) for c in record["candidates"] if key in c["scores"]]
            if len(scored) > 1:
                yield made(record, name, record["id"], scored)

    return records


def by_verdict(name: str, field: str, difference: float) -> Callable[[list[Record]], Iterator[Record]]:
    """Pairs by a verdict A, B or tie."""
    scores = {"A": (difference, 0.0), "B": (0.0, difference), "tie": (0.0, 0.0)}

    def records(given: list[Record]) -> Iterator[Record]:
        for record in given:
            yield made(record, name, record["id"], zip((c["text"] for c in record["candidates"]), scores[record[field]], strict=True))

    return records


def tulu(given: list[Record]) -> Iterator[Record]:
    """Pairs by the mean verdict of several people, -1 to 1."""
    for record in given:
        first, second = (c["text"] for c in record["candidates"])
        yield made(record, "tulu_human", record["id"], [(first, 2 * record["human_score"]), (second, 0.0)])


def rmb(given: list[Record]) -> Iterator[Record]:
    """Pairs of an instruction that share answers, as one list where that says nothing which the pairs do not say."""
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in given:
        groups[record["goal"], source_text(record)].append(record)
    for (goal, _), records in groups.items():
        name = {"Helpfulness": "rmb_help", "Harmlessness": "rmb_harm"}[goal]
        pairs = []
        for record in records:
            first, second = (c["text"] for c in record["candidates"])
            pairs.append((first, second) if record["label"] == "A" else (second, first))
        for number, part in enumerate(connected(pairs)):
            heights = levels(part)
            for k, scored in enumerate([heights] if heights else [{better: 1, worse: 0} for better, worse in part]):
                yield made(records[0], name, f"{records[0]['id']}/{number}/{k}", ((text, JUDGED * height) for text, height in scored.items()))


def connected(pairs: list[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """The pairs in groups that share no text."""
    parts: list[list[tuple[str, str]]] = []
    for pair in pairs:
        touching = [part for part in parts if any(set(pair) & set(other) for other in part)]
        parts = [part for part in parts if part not in touching] + [[*(other for part in touching for other in part), pair]]
    return parts


def levels(pairs: list[tuple[str, str]]) -> dict[str, int] | None:
    """A height for each text, such that exactly what the pairs (better, worse) and their chains say differs in height; None where there is none."""
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    above = {text: {better for better, worse in pairs if worse == text} for text in texts}
    for _ in texts:
        above = {text: found | {higher for better in found for higher in above[better]} for text, found in above.items()}
    if any(text in found for text, found in above.items()):
        return None
    heights = dict.fromkeys(texts, 0)
    for text in sorted(texts, key=lambda text: -len(above[text])):
        for better in above[text]:
            heights[better] = max(heights[better], heights[text] + 1)
    said = all(heights[a] == heights[b] or b in above[a] or a in above[b] for a, b in combinations(texts, 2))
    return heights if said else None


Maker = Callable[[list[Record]], Iterator[Record]]
SETS: dict[str, list[Maker]] = {
    "train": [by_score("train", "gpt4_pref", log_odds)],
    "train_wide": [by_score("train_wide", "gpt4_pref", log_odds)],
    "alpaca_wide_all": [by_score("alpaca_wide", "gpt4_pref", log_odds), by_score("alpaca_v1", "gpt4_v1", log_odds)],
    "rmb_train": [rmb],
    "ultrafeedback_part": [by_score("ultrafeedback", "gpt4_1to10", float)],
    "dpo_en_demo": [by_verdict("dpo_en", "label", JUDGED)],
    "cherry_pairs": [by_verdict("cherry", "label", JUDGED)],
    "qa_feedback": [by_score("qa_feedback", "human_winrate", lambda rate: 4 * rate)],
    "tulu_human_train": [tulu],
    "hh_harmless_train": [by_verdict("hh_harmless", "human", 2.0)],
    "qlora_vicuna": [by_score("qlora", "gpt4_1to10", float)],
    "prometheus_vicuna": [by_score("prometheus", "gpt4_rubric_1to5", lambda score: 1.5 * score)],
    "autoj_single": [by_score("autoj_single", "gpt4_1to10", float)],
    "flask_pool": [],
}
# Sets whose better answers are good enough to be the right one of a hard pair; not safety, and not answers from passages.
GOOD = ("train", "train_wide", "ultrafeedback", "rmb_help", "dpo_en")


# --- hard pairs


def hard(records: list[Record], seed: int) -> Iterator[Record]:
    """Of each instruction one pair of each kind that there is."""
    usable = [record for record in records if record["set"] in GOOD]
    known: dict[str, Record] = {}
    for record in usable:
        known.setdefault(source_text(record), record)
    near = neighbours(known)
    for number, (x, record) in enumerate(known.items()):
        rng = random.Random(f"{seed} {x}")
        plain, other = right_and_other(record)
        for name, pair in (
            ("hard_off", off(plain, near.get(x))),
            ("hard_constraint", constraint(x, plain, other, rng)),
            ("hard_cut", cut(plain, rng)),
            ("hard_padded", padded(plain, near.get(x), rng)),
        ):
            if pair is not None:
                asked, right, wrong = pair if len(pair) == 3 else (None, *pair)
                yield made(record, name, number, [(right, MADE), (wrong, 0.0)], asked and f"{record['instruction']}\n\n{asked}")


def right_and_other(record: Record) -> tuple[str, str]:
    """A plain right answer, the shortest among the better half, and the longest of all."""
    ordered = sorted(record["candidates"], key=lambda c: -c["scores"]["oracle"])
    plain = min(ordered[: max(1, len(ordered) // 2)], key=lambda c: (len(c["text"]) < 80, len(c["text"])))
    return plain["text"], max(ordered, key=lambda c: len(c["text"]))["text"]


def neighbours(known: Mapping[str, Record]) -> dict[str, str]:
    """For each x the best answer to the most similar other x, by the rare words that they share."""
    words = {x: set(re.findall(r"\w{3,}", x.lower())) for x in known}
    counts = Counter(word for found in words.values() for word in found)
    holders: dict[str, list[str]] = defaultdict(list)
    for x, found in words.items():
        for word in found:
            # A word of many instructions tells nothing, and costs most.
            if counts[word] <= 60:
                holders[word].append(x)
    weights = {x: sum(1 / counts[word] for word in found) for x, found in words.items()}
    found = {}
    for x in known:
        shared: Counter[str] = Counter()
        for word in sorted(words[x]):
            for other in holders[word]:
                shared[other] += 1 / counts[word]  # type: ignore[assignment]
        # The same task in other words is no wrong answer.
        close = {other: value / (weights[x] + weights[other] - value) for other, value in shared.items() if other != x}
        close = {other: value for other, value in close.items() if value < 0.4 and instruction_of(known[other]) != instruction_of(known[x])}
        if close:
            nearest = max(close, key=lambda other: (close[other], other))
            found[x] = max(known[nearest]["candidates"], key=lambda c: c["scores"]["oracle"])["text"]
    return found


def off(plain: str, neighbour: str | None) -> tuple[str, str] | None:
    """A good and longer answer to another instruction."""
    return (plain, neighbour) if neighbour is not None and len(neighbour) > len(plain) and neighbour != plain else None


def cut(plain: str, rng: random.Random) -> tuple[str, str] | None:
    """The answer, and the same cut off within a sentence."""
    words = list(re.finditer(r"\S+", plain))
    if len(words) < 30:
        return None
    end = words[int(len(words) * rng.uniform(0.3, 0.7))].end()
    return plain, plain[:end].rstrip(".!?:;,")


FILLERS = (
    "It is important to note that there are many aspects to consider here, and that each of them matters in its own way.",
    "In conclusion, this is a topic of great importance, and there is much more that could be said about it.",
    "I hope this information is helpful! Please do not hesitate to ask if you have any further questions or need any more assistance.",
    "As always, it is recommended to do your own research, to consult a qualified professional, and to consider your own situation.",
    "There are several factors that play a role in this, and it is essential to take all of them into account in order to get the best result.",
)


def padded(plain: str, neighbour: str | None, rng: random.Random) -> tuple[str, str] | None:
    """The answer, and the same with phrases that say nothing, with its own sentences again, or with a part of another answer."""
    parts = [part for part in re.split(r"(?<=[.!?])\s+|\n+", plain) if len(part) > 20]
    kinds: list[Callable[[], str]] = [lambda: " ".join(rng.sample(FILLERS, rng.randint(2, 4)))]
    if len(parts) > 1:
        kinds.append(lambda: " ".join(rng.sample(parts, len(parts) // 2 + 1)))
    if neighbour is not None:
        kinds.append(lambda: neighbour[: max(200, len(plain) // 2)])
    return plain, f"{plain}\n\n{rng.choice(kinds)()}"


LIST = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)


def constraint(x: str, plain: str, other: str, rng: random.Random) -> tuple[str, str, str] | None:
    """A constraint to be added to the instruction, the answer that keeps it, and one, as a rule the longer, that drops it."""
    if plain == other:
        return None
    few, many = len(plain.split()), len(other.split())
    found: list[tuple[str, str, str]] = []
    if few * 1.4 < many:
        most = -(-few // 10) * 10
        found.append((rng.choice((f"Use at most {most} words.", f"Keep your answer under {most + 1} words.")), plain, other))
    if LIST.search(other) and not LIST.search(plain):
        found.append((rng.choice(("Do not use a list.", "Answer in prose, without bullet points or numbering.")), plain, other))
    if LIST.search(plain) and not LIST.search(other):
        found.append(("Give your answer as a list.", plain, other))
    if "\n" in other.strip() and "\n" not in plain.strip():
        found.append(("Answer in a single paragraph.", plain, other))
    only = sorted(set(re.findall(r"\b[a-z]{5,12}\b", other)) - set(re.findall(r"[a-z]+", (plain + x).lower())))
    if only:
        found.append((f'Do not use the word "{rng.choice(only)}".', plain, other))
    ending = rng.choice(("That is all.", "Thank you for reading.", "Over and out."))
    found.append((f'End your answer with "{ending}"', f"{plain}\n\n{ending}", other))
    return rng.choice(found)


# --- the files


def build(data: Path, folder: Path, seed: int = 0, sets: Mapping[str, list[Maker]] = SETS) -> dict[str, list[Record]]:
    """Writes the three files, and gives their records."""
    kept_out = {instruction_of(record) for name in EVALUATION for record in read(data / f"{name}.jsonl.gz")}
    files = {name: [record for record in read(data / f"{name}.jsonl.gz") if fits(record) and instruction_of(record) not in kept_out] for name in sets}
    labelled = [record for name, makers in sets.items() for maker in makers for record in maker(files[name])]
    by_part: dict[bool, list[Record]] = {False: [], True: []}
    for record in labelled:
        by_part[is_held_out(instruction_of(record))].append(record)
    # A neighbour comes from the same part, so that nothing of the one is in the other.
    train, held = ([*records, *hard(records, seed)] for records in by_part.values())
    parts = {"train": shuffled(train, seed), "held": alike([fewer(record, seed) for record in shuffled(held, seed)]), "pool": pool(files)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in parts.items():
        # Without the time in its head, the same records give the same bytes.
        with (folder / f"{name}.jsonl.gz").open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
            file.writelines(orjson.dumps(record) + b"\n" for record in records)
    return parts


def fits(record: Record) -> bool:
    """Whether a ranker would see what is asked."""
    return len(source_text(record)) <= (LONGEST_CHAT if record.get("turns", 1) > 1 else LONGEST)


def shuffled(records: list[Record], seed: int) -> list[Record]:
    """The records in a drawn order."""
    return random.Random(seed).sample(records, len(records))


def fewer(record: Record, seed: int) -> Record:
    """The record with at most `MEASURED` of its candidates: a full matrix of fifty costs twenty times that of eleven."""
    candidates = record["candidates"]
    chosen = random.Random(f"{seed} {record['id']}").sample(candidates, min(MEASURED, len(candidates)))
    return {**record, "candidates": chosen}


def alike(records: list[Record]) -> list[Record]:
    """The records, one of each set after the other."""
    sets: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        sets[record["set"]].append(record)
    return [record for row in zip_longest(*sets.values()) for record in row if record is not None]


def pool(files: Mapping[str, list[Record]]) -> list[Record]:
    """Every instruction that is not held out, with all of its answers."""
    found: dict[str, tuple[Record, dict[str, None]]] = {}
    for records in files.values():
        for record in records:
            if not is_held_out(instruction_of(record)):
                texts = found.setdefault(source_text(record), (record, {}))[1]
                texts.update(dict.fromkeys(c["text"] for c in record["candidates"]))
    return [
        {"id": str(number), "instruction": record["instruction"], "input": record.get("input") or "", "candidates": [{"model": "", "text": t} for t in texts]}
        for number, (record, texts) in enumerate(found.values())
    ]


def table(parts: Mapping[str, list[Record]]) -> Iterator[str]:
    """What there is of each set: records, instructions, pairs that differ, in how many percent of them the longer answer wins."""
    yield "| part | set | records | instructions | answers | pairs | longer % |\n|---|---|---|---|---|---|---|"
    for part in ("train", "held"):
        for name in dict.fromkeys(sorted(record["set"] for record in parts[part])):
            records = [record for record in parts[part] if record["set"] == name]
            won: Counter[bool] = Counter()
            for record in records:
                for a, b in combinations(record["candidates"], 2):
                    better, length = a["scores"]["oracle"] - b["scores"]["oracle"], len(a["text"]) - len(b["text"])
                    if better and length:
                        won[(better > 0) == (length > 0)] += 1
            asked, answers = len({instruction_of(record) for record in records}), sum(len(record["candidates"]) for record in records)
            yield f"| {part} | {name} | {len(records)} | {asked} | {answers} | {won.total()} | {100 * won[True] / max(1, won.total()):.0f} |"
    yield f"\npool: {len(parts['pool'])} instructions, {sum(len(record['candidates']) for record in parts['pool'])} answers"


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    print("\n".join(table(build(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0))))
