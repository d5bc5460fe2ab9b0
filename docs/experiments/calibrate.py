"""Divides a PairRanker's logits by a temperature, in its weights: python calibrate.py CHECKPOINT TEMPERATURE."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from blendkit.models.pairrm import load_pairrm, save_pairrm


def main() -> None:
    """The scale is in the last layer of the head, whose two scores' difference is the logit, and in the weight of what the head for relevance adds."""
    folder, temperature = Path(sys.argv[1]), float(sys.argv[2])
    model, tokenizer = load_pairrm(str(folder))
    with torch.no_grad():
        for owner in (model, *([model.expert] if model.expert else [])):
            for parameter in owner.head_layer[4].parameters():
                parameter /= temperature
        if model.relevance:
            model.relevance.weight /= temperature
    save_pairrm(folder, model, tokenizer)


if __name__ == "__main__":
    main()
