"""The tables of schedules and of references. A new one is a function of its file and a row here."""

from __future__ import annotations

from blendkit.registry import Registry, Row

_AT = "blendkit.rankers.schedules"
SCHEDULES = Registry(
    "blendkit.schedules",
    {
        "full": Row(f"{_AT}:full", "both orders of all pairs"),
        "single": Row(f"{_AT}:single", "each pair once"),
        "bubble": Row(f"{_AT}:bubble", "the best only, or the top K", "bubble[:K]"),
        "sort": Row(f"{_AT}:sort", "all in order"),
        "swiss": Row(f"{_AT}:swiss", "R rounds of neighbours", "swiss:R"),
        "active": Row(f"{_AT}:active", "B comparisons a record, the least sure ones", "active:B"),
    },
)

_AT = "blendkit.rankers.references"
REFERENCES = Registry(
    "blendkit.references",
    {
        "longest": Row(f"{_AT}:longest", "the one of the most characters"),
        "shortest": Row(f"{_AT}:shortest", "the one of the fewest characters"),
        "median-length": Row(f"{_AT}:median_length", "the middle one by characters"),
        "first": Row(f"{_AT}:first", "the first"),
        "last": Row(f"{_AT}:last", "the last"),
    },
)
