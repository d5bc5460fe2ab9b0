"""What ranking and fusing did to one record of a blended stream: python before_and_after.py ID < blended.jsonl"""

import json
import sys
import textwrap


def show(title: str, text: str) -> None:
    """A title, and a text below it in lines that fit a terminal."""
    print(title)
    for line in text.splitlines():
        print(textwrap.fill(line, 110, initial_indent="    ", subsequent_indent="    "))
    print()


def main() -> None:
    """Shows x, the first candidate, each ranking's choice, and what was fused."""
    records = {record["id"]: record for record in map(json.loads, sys.stdin)}
    if len(sys.argv) != 2 or sys.argv[1] not in records:
        sys.exit(f"expected the id of a record, one of {', '.join(records)}")
    record = records[sys.argv[1]]
    candidates = record["candidates"]
    show(record["id"], "\n".join(filter(None, (record["instruction"], record.get("input")))))
    show(f"before: {candidates[0]['model']}, the first of {sum('sources' not in one for one in candidates)} candidates", candidates[0]["text"])
    for name, ranks in record["ranks"].items():
        best, *others = sorted(range(len(ranks)), key=ranks.__getitem__)
        names = ", ".join(candidates[place]["model"] for place in others)
        show(f"ranked first by {name}: {candidates[best]['model']} (then {names})", candidates[best]["text"])
    for one in candidates:
        if "sources" in one:
            show(f"fused by {one['model']} of {', '.join(candidates[place]['model'] for place in one['sources'])}", one["text"])


main()
