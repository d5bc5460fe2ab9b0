"""A ranker for the package: python release.py OUTPUT RANKER … [--paired-layers K] — the mean of the weights of trained rankers, one or several.

The vocabulary's embeddings are written in int8 with a scale a row, all other weights in float16. With --paired-layers the ranker is
late-paired with these weights as they are, before any training as such. Experts and heads for relevance are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from blendkit.models.expert import without_expert
from blendkit.models.pairrm import load_pairrm, save_pairrm, without_relevance
from blendkit.training.new_pairranker import late_paired


def main() -> None:
    """Writes OUTPUT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("rankers", nargs="+")
    parser.add_argument("--paired-layers", type=int, choices=[0, 1, 2])
    asked = parser.parse_args()
    tokenizer = load_pairrm(asked.rankers[0])[1]
    models = [without_relevance(without_expert(load_pairrm(folder)[0])) for folder in asked.rankers]
    model, rankers = models[0], [one.state_dict() for one in models]
    means = {name: torch.stack([weights[name].float() for weights in rankers]).mean(0) for name, value in rankers[0].items() if value.is_floating_point()}
    model.load_state_dict(means, strict=False)
    if asked.paired_layers is not None:
        model = late_paired(model, asked.paired_layers)
    save_pairrm(asked.output, model, tokenizer, small=True)


if __name__ == "__main__":
    main()
