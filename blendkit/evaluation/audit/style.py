"""How an answer looks: its length and its Markdown, as style control counts them (Li, Angelopoulos and Chiang 2024, "Does style matter?")."""

from __future__ import annotations

import re

# What a text has of each; `characters` is at least 1, so that its logarithm is a number.
STYLE = ("length", "headers", "lists", "bold")
# What a person calls them.
CONTROLS = {"length": STYLE[:1], "markdown": STYLE[1:]}
_FENCED = re.compile(r"^```.*?(?:^```|\Z)", re.MULTILINE | re.DOTALL)
_HEADER = re.compile(r"^#{1,6} ", re.MULTILINE)
_ITEM = re.compile(r"^[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]", re.MULTILINE)
_BOLD = re.compile(r"\*\*(?=\S)[^*\n]+(?<=\S)\*\*|__(?=\S)[^_\n]+(?<=\S)__")


def style_of(text: str) -> tuple[int, int, int, int]:
    """Characters, headers, list items and bold passages; what stands in a fence of code is no Markdown."""
    plain = _FENCED.sub("", text) if "```" in text else text
    headers = len(_HEADER.findall(plain)) if "#" in plain else 0
    bold = len(_BOLD.findall(plain)) if "**" in plain or "__" in plain else 0
    return max(len(text), 1), headers, len(_ITEM.findall(plain)), bold
