"""A ranker for the package: python release.py OUTPUT RANKER … — the mean of the weights of trained rankers, one or several.

The vocabulary's embeddings are written in int8 with a scale a row, all other weights in float16.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from blendkit.models.pairrm import load_pairrm, save_pairrm


def main() -> None:
    """Writes OUTPUT."""
    output, *folders = sys.argv[1:]
    model, tokenizer = load_pairrm(folders[0])
    rankers = [model.state_dict(), *(load_pairrm(folder)[0].state_dict() for folder in folders[1:])]
    means = {name: torch.stack([weights[name].float() for weights in rankers]).mean(0) for name, value in rankers[0].items() if value.is_floating_point()}
    model.load_state_dict(means, strict=False)
    save_pairrm(Path(output), model, tokenizer, small_vocabulary=True)


if __name__ == "__main__":
    main()
