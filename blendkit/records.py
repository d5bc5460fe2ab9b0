"""The record: its types (which are also its JSON Schema), its validation, and x as text.

A record stays a plain `dict` all the way through, so that unknown fields stream through untouched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
import orjson

from blendkit.errors import RecordError, got
from blendkit.names import Called
from blendkit.terminal_text import count_of
from blendkit.untrusted import json_value, kind_of, typed

Record = dict[str, Any]
Index = Annotated[int, msgspec.Meta(ge=0)]
Indices = list[Index]
Rank = Annotated[int, msgspec.Meta(ge=1, le=65_535)]
# Beyond these a sum or a rounding of them would be infinite.
Score = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]
Logit = Annotated[float, msgspec.Meta(ge=-1e100, le=1e100)]
# orjson writes no deeper nesting than this, though it reads deeper.
NESTED = 254


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class CriterionGrade(TypedDict):
    """What an answer is worth by a criterion of a rubric, in its own scale; None where the judge's reply could not be read."""

    grade: Score | None
    reason: NotRequired[str | None]


class Candidate(TypedDict):
    """One answer to x; its text may be empty.

    `rubrics` has the grades of which a score is the mean, by the score's name and the criterion's. `reasoning` is what the model thought
    before it answered, and `analysis` what a fuser wrote of the answers that it read; no other model is shown them.
    """

    model: str
    text: str
    decoding_method: NotRequired[str | None]
    scores: NotRequired[dict[str, Score | None]]
    sources: NotRequired[list[Index]]
    finish_reason: NotRequired[str | None]
    usage: NotRequired[dict[str, Any] | None]
    reasoning: NotRequired[str | None]
    analysis: NotRequired[str | None]
    rubrics: NotRequired[dict[str, dict[str, CriterionGrade]]]


class Comparisons(TypedDict):
    """What one ranker compared: [i, j, logit], logit > 0 when candidate i, shown first, beats j, shown second.

    `order` holds candidates, best first, where the schedule found their order for sure; `prefilter` says by
    which score candidates were left out of the comparisons.
    """

    pairs: list[tuple[Index, Index, Logit]]
    model: NotRequired[str]
    schedule: NotRequired[str]
    order: NotRequired[list[Index]]
    prefilter: NotRequired[str]


class Verdict(TypedDict):
    """What a judge said of candidates a and b; `shown` is the order in which it saw them.

    `probability` that a is better, a tie counting half, comes from a judge whose tokens' likelihood is known. `list` are the
    candidates that it put in order together, as it was shown them, where the verdict follows from such an order.
    """

    a: Index
    b: Index
    verdict: Literal["A", "B", "tie-good", "tie-bad", "unparsed"]
    shown: NotRequired[tuple[Index, Index]]
    probability: NotRequired[Annotated[float, msgspec.Meta(ge=0, le=1)] | None]
    reason: NotRequired[str | None]
    list: NotRequired[Indices]


class RecordSchema(TypedDict, total=False):
    """One line of a blendkit stream; a superset of the public MixInstruct record. Other fields pass through."""

    id: str
    instruction: str | None
    input: str | None
    messages: list[Message] | None
    output: str | None
    candidates: list[Candidate]
    comparisons: dict[str, Comparisons]
    ranks: dict[str, list[Rank]]
    top: list[Index]
    verdicts: dict[str, list[Verdict]]
    signatures: dict[str, str]
    cmp_results: dict[str, str] | str | None


def json_schema() -> dict[str, Any]:
    """The record's JSON Schema (2020-12), made from the types above."""
    schema = msgspec.json.schema(RecordSchema)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "blendkit record"}
    return {**head, **schema}


def read(line: bytes, number: int) -> Record:
    """One line of a stream into a record whose fields are not checked; a missing `id` becomes the line's number.

    Raises:
        RecordError: not UTF-8, not JSON, or not an object.
    """
    record = json_value(line)
    if not isinstance(record, dict):
        raise RecordError("", f"expected a JSON object, got {kind_of(record)}")
    return record if "id" in record else {"id": str(number), **record}


def parse(line: bytes, number: int) -> Record:
    """`read`, into a valid record.

    Raises:
        RecordError: not UTF-8, not JSON, not an object, or a field is of the wrong type.
    """
    record = read(line, number)
    validate(record)
    # Most brackets are those of pairs, verdicts and candidates, of which a value lies in a few at most; what is left bounds the depth.
    if line.count(b"[") + line.count(b"{") - _containers(record) > NESTED - 8:
        writable(record)
    return record


def _containers(record: Record) -> int:
    """How many of the record's arrays and objects are pairs, verdicts and candidates."""
    pairs = sum(len(comparisons["pairs"]) for comparisons in record.get("comparisons", {}).values())
    return pairs + sum(map(len, record.get("verdicts", {}).values())) + len(record.get("candidates", ()))


def writable(record: Record) -> None:
    """Refuses a value that can be read but not written again.

    Raises:
        RecordError: the value is not one of JSON, or is nested too deep.
    """
    try:
        as_line(record)
    except (TypeError, RecursionError) as error:
        problem = f"expected at most {NESTED} levels, got a value nested deeper" if "ecursion" in str(error) else str(error)
        raise RecordError("", problem) from error


def as_line(row: Any) -> bytes:
    """A row of JSON with its line end."""
    try:
        return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError as error:
        if "64-bit" not in str(error):
            raise
        # It keeps integers of more than 64 bits.
        return msgspec.json.encode(row) + b"\n"


def check_is_record(record: object) -> None:
    """Raises RecordError where an object that a caller gave is none."""
    if not isinstance(record, dict):
        raise RecordError("", f"expected a dict, got {got(record)}")


def place_of(place: int) -> str:
    """How errors call the record at this place, from 0, of those that a caller gave."""
    return f"records[{place}]"


def copied(value: Any) -> Any:
    """A record in which all that can be changed is new; what cannot, such as texts, is shared."""
    if isinstance(value, dict):
        return {name: copied(inner) for name, inner in value.items()}
    return [copied(inner) for inner in value] if isinstance(value, list | tuple) else value


def validate(record: Record) -> None:
    """Checks types, then that every index points at a candidate.

    Raises:
        RecordError: with the path of the first field that is wrong.
    """
    typed(record, RecordSchema)
    if record.get("messages") == [] and record.get("instruction") is None and record.get("input") is None:
        raise RecordError("messages", "expected at least one message, or `instruction`, got an empty conversation")
    count = len(record.get("candidates", ()))
    if _highest(record) >= count:
        for field, index in _indices(record):
            if index >= count:
                raise RecordError(field, f"expected the index of one of {count_of(count, 'candidate')}, got {index}")
    for name, ranks in record.get("ranks", {}).items():
        if len(ranks) > count:
            raise RecordError(f"ranks.{name}", f"expected at most one rank a candidate ({count}), got {len(ranks)}")


def _highest(record: Record) -> int:
    """The largest index in the record, -1 if there is none; plain loops, as this is done for every record."""
    highest = max(record.get("top", ()), default=-1)
    for comparisons in record.get("comparisons", {}).values():
        highest = max(highest, *comparisons.get("order", ()), -1)
        for i, j, _ in comparisons["pairs"]:
            if i > highest:
                highest = i
            if j > highest:
                highest = j
    for verdicts in record.get("verdicts", {}).values():
        for verdict in verdicts:
            if verdict["a"] > highest:
                highest = verdict["a"]
            if verdict["b"] > highest:
                highest = verdict["b"]
            if "list" in verdict:
                highest = max(highest, *verdict["list"], -1)
    return highest


def _indices(record: Record) -> Iterator[tuple[str, int]]:
    for name, comparisons in record.get("comparisons", {}).items():
        for place, (i, j, _) in enumerate(comparisons["pairs"]):
            yield f"comparisons.{name}.pairs[{place}]", max(i, j)
        for place, index in enumerate(comparisons.get("order", ())):
            yield f"comparisons.{name}.order[{place}]", index
    for place, index in enumerate(record.get("top", ())):
        yield f"top[{place}]", index
    for name, verdicts in record.get("verdicts", {}).items():
        for place, verdict in enumerate(verdicts):
            yield f"verdicts.{name}[{place}]", max(verdict["a"], verdict["b"])
            for at, index in enumerate(verdict.get("list", ())):
                yield f"verdicts.{name}[{place}].list[{at}]", index


def source_text(record: Record) -> str:
    """x: the instruction, then the input on a line of its own where there is one, or the conversation's text.

    Raises:
        RecordError: the record has neither an instruction, nor an input, nor messages.
    """
    if messages := record.get("messages"):
        if len(messages) == 1:
            return str(messages[0]["content"])
        return "\n".join(f"{message['role'].upper()}: {message['content']}" for message in messages)
    if record.get("instruction") is None and record.get("input") is None:
        raise RecordError("instruction", "expected a string (or `input`, or `messages`), got nothing")
    return "\n".join(part for part in (record.get("instruction"), record.get("input")) if part)


def candidates_of(record: Record, at_least: int = 1) -> list[dict[str, Any]]:
    """The record's candidates.

    Raises:
        RecordError: there are fewer than `at_least`.
    """
    candidates: list[dict[str, Any]] = record.get("candidates", [])
    if len(candidates) < at_least:
        raise RecordError("candidates", f"expected at least {at_least}, got {len(candidates)}; `blendkit generate` writes them")
    return candidates


def reference_of(record: Record, wanted_by: str) -> str:
    """The reference answer y.

    Raises:
        RecordError: the record has none.
    """
    reference = record.get("output")
    if reference is None:
        raise RecordError("output", f"expected a string: {wanted_by} needs the reference answer")
    return str(reference)


def generated_only(candidates: Iterable[dict[str, Any]]) -> list[int]:
    """Indices of the candidates that LLMs wrote; a fused one has `sources` and competes with none of them."""
    return [index for index, candidate in enumerate(candidates) if not candidate.get("sources")]


def verdicts_of(record: Record) -> dict[str, list[dict[str, Any]]]:
    """All verdicts by judge; MixInstruct's own `cmp_results` are those of the judge `mixinstruct`.

    Raises:
        RecordError: `cmp_results` does not name the record's candidates, or names them so that several are meant, or has an unknown verdict.
    """
    verdicts = dict(record.get("verdicts", {}))
    results = record.get("cmp_results")
    if isinstance(results, str):
        try:
            results = json_value(results)
        except RecordError as error:
            raise RecordError("cmp_results", f"expected an object, or one as a JSON string, which is {error}") from error
    if results is not None:
        if not isinstance(results, dict):
            raise RecordError("cmp_results", f"expected an object, got {kind_of(results)}")
        if results:
            verdicts["mixinstruct"] = list(_mixinstruct(results, record.get("candidates", [])))
    return verdicts


_MIXINSTRUCT = {"A is better": "A", "B is better": "B", "Same good": "tie-good", "Same bad": "tie-bad"}


def _mixinstruct(results: dict[str, Any], candidates: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    places = {candidate["model"]: place for place, candidate in enumerate(candidates)}
    one_each, called = len(places) == len(candidates), None
    for key, value in results.items():
        first, comma, second = key.partition(",")
        if one_each and comma and "," not in second and first in places and second in places:
            a, b = places[first], places[second]
        else:
            called = called or Called(candidates)
            a, b = _compared(key, called)
        if not isinstance(value, str):
            raise RecordError("cmp_results", f"{key!r}: expected one of {', '.join(_MIXINSTRUCT)}, got {kind_of(value)}")
        if value not in _MIXINSTRUCT:
            raise RecordError("cmp_results", f"{key!r}: expected one of {', '.join(_MIXINSTRUCT)}, got {value!r}")
        yield {"a": a, "b": b, "verdict": _MIXINSTRUCT[value], "shown": [a, b]}


def _compared(key: str, called: Called) -> tuple[int, int]:
    """The two candidates that a key of `cmp_results` names; names may hold commas."""
    ends, lengths = len(key) - 1, called.lengths
    splits = [(key[:at], key[at + 1 :]) for at, character in enumerate(key) if character == "," and at in lengths and ends - at in lengths]
    fitting = [names for names in splits if names[0] in called and names[1] in called]
    if len(fitting) > 1:
        ways = " and as ".join(f"{first!r} with {second!r}" for first, second in fitting[:3])
        raise RecordError("cmp_results", f"{key!r}: expected two candidates, got {count_of(len(fitting), 'way')} to read it: as {ways}")
    if not fitting:
        first, comma, second = key.partition(",")
        if "," in second:
            raise RecordError("cmp_results", f"{key!r} gives no two candidates' models, at whichever comma it is split")
        if not comma and first in called:
            raise RecordError("cmp_results", f"{key!r}: expected two models with a comma between them")
        raise RecordError("cmp_results", f"{key!r} names {(second if first in called else first)!r}, which is no candidate's model")
    a, b = (called.place(name, f"{key!r} names {name!r}", "cmp_results") for name in fitting[0])
    return a, b
