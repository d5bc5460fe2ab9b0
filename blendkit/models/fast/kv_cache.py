"""Keys and values in memory that is asked for once, where transformers copies all of them for each new token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

# Columns beside the prompt's that a layer has room for at first; more are added by half of what there is.
FIRST = 256


def windowed(network: Any) -> bool:
    """Whether a layer sees a window of the last columns only, padding among them."""
    return any(type(layer) is DynamicSlidingWindowLayer for layer in DynamicCache(config=network.config.get_text_config(decoder=True)).layers)


def attention_only(network: Any) -> bool:
    """Whether all layers of a decoder keep keys and values alone, and no state of another kind."""
    config = network.config.get_text_config(decoder=True)
    layers = DynamicCache(config=config).layers
    # Chunks are counted by columns, padding among them, and transformers' own cache knows of that.
    plain = bool(layers) and "chunked_attention" not in (getattr(config, "layer_types", None) or ())
    return plain and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values, [rows, heads, columns, width of a head]; `keys` and `values` are what the last pass read.

    Columns of a sliding window's layer are kept, too: its mask hides what is behind the window.
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.most, self.columns = rows, columns
        self.rows, self.base, self.filled = slice(0, rows), 0, 0
        self.stored: tuple[Tensor, Tensor] | None = None
        self._live: tuple[Tensor, Tensor] | None = None

    def at(self, rows: slice, base: int, filled: int) -> None:
        """The next pass is for these rows, reads `filled` columns from `base` on, and writes behind them."""
        if rows != self.rows:
            self._live = None
        self.rows, self.base, self.filled = rows, base, filled

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes the new columns; all that the rows have so far."""
        start, new = self.base + self.filled, key_states.shape[-2]
        self.filled += new
        if self.stored is None or start + new > self.stored[0].shape[2]:
            self.stored = _with_columns(self.stored, (key_states, value_states), self.most, start + new, self.columns)
            self._live = None
        if self._live is None:
            self._live = (self.stored[0][self.rows], self.stored[1][self.rows])
        keys, values = self._live
        keys.narrow(2, start, new).copy_(key_states)
        values.narrow(2, start, new).copy_(value_states)
        self.is_initialized = True
        self.keys, self.values = keys.narrow(2, self.base, self.filled), values.narrow(2, self.base, self.filled)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Columns that the rows have."""
        return self.filled


class PreallocatedCache(Cache):  # type: ignore[misc]
    """A cache for `rows` prompts of at most `width` tokens, and answers of at most `room`; `attention_only` must hold."""

    layers: list[PreallocatedLayer]

    def __init__(self, network: Any, rows: int, width: int, room: int) -> None:
        count = len(DynamicCache(config=network.config.get_text_config(decoder=True)).layers)
        super().__init__(layers=[PreallocatedLayer(rows, width + min(room, FIRST)) for _ in range(count)])

    def at(self, rows: slice, base: int, filled: int) -> None:
        """The next pass is for these rows, reads `filled` columns from `base` on, and writes behind them."""
        for layer in self.layers:
            layer.at(rows, base, filled)

    def move(self, sources: Tensor | int, places: Tensor | slice, columns: int) -> None:
        """Row `sources[i]` goes to the place of row `places[i]`, or one row to many, with so many columns."""
        for layer in self.layers:
            for part in layer.stored or ():
                part[places, :, :columns] = part[sources, :, :columns]


def _with_columns(stored: tuple[Tensor, Tensor] | None, states: tuple[Tensor, Tensor], rows: int, needed: int, first: int) -> tuple[Tensor, Tensor]:
    """What is stored, and room for as many columns as are needed. Unwritten ones are 0: a masked one is multiplied by 0, which a stray NaN would survive."""
    columns = stored[0].shape[2] if stored else 0
    new = max(needed, first, columns + columns // 2)
    keys, values = (torch.zeros(rows, part.shape[1], new, part.shape[3], dtype=part.dtype, device=part.device) for part in states)
    if stored:
        keys[:, :, :columns], values[:, :, :columns] = stored
    return keys, values
