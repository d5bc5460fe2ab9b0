"""Colours of the figures, and names as they hold them."""

from __future__ import annotations

from blendkit.terminal_text import shown

# As in the page's style; there, each goes by the reader's light or dark colours.
INK, BACK, BLUE, GREY = "#1c2430", "#ffffff", "#2563a8", "#8a8f98"
THEMED = {INK: "var(--ink)", BACK: "var(--back)", BLUE: "var(--accent)", GREY: "var(--dim)"}
LONGEST = 32


def short(name: str, longest: int = LONGEST) -> str:
    """A name that has room in a figure."""
    name = shown(name)
    return name if len(name) <= longest else name[: longest - 1] + "…"
