"""What a figure is, the colours of all, and names as they hold them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from blendkit.terminal_text import shown

Draw = Callable[[Any], None]
# As in the page's style; there, each goes by the reader's light or dark colours.
INK, BACK, BLUE, GREY = "#1c2430", "#ffffff", "#2563a8", "#8a8f98"
THEMED = {INK: "var(--ink)", BACK: "var(--back)", BLUE: "var(--accent)", GREY: "var(--dim)"}
LONGEST = 32


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure of a table's rows: how to draw it on a matplotlib figure or a part of one, and its height in inches."""

    table: int | str
    title: str
    draw: Draw
    height: float


def short(name: str, longest: int = LONGEST) -> str:
    """A name that has room in a figure."""
    name = shown(name)
    return name if len(name) <= longest else name[: longest - 1] + "…"


def key_under(names: Iterable[str]) -> str:
    """Which name has which number, from 1 on, in the lines under a figure."""
    return textwrap.fill("   ".join(f"{number}\u00a0{short(name)}" for number, name in enumerate(names, 1)), 105, break_on_hyphens=False)
