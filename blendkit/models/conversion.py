"""A checkpoint in one form as one in another."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def from_gguf(source: Path, folder: Path) -> None:
    """Tokenizer, configuration and weights of a GGUF file as safetensors; in float32, as the sums of a block's scale and offset fit into no shorter number.

    Raises:
        NoInputError: the file is damaged, or of a kind that transformers does not read.
        UsageError: what reading it needs is not installed.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from blendkit.models.pretrained import pretrained

    what = "model that generates text"
    tokenizer: Any = pretrained(AutoTokenizer, str(source), what)
    network: Any = pretrained(AutoModelForCausalLM, str(source), what, whole=True, dtype=torch.float32)
    # transformers would not write what it still calls quantised, and nothing is any longer.
    network.config.__dict__.pop("quantization_config", None)
    network.config.architectures = [type(network).__name__]
    network.config.save_pretrained(folder)
    network.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tied = set(network.all_tied_weights_keys)
    weights = {key: value.contiguous() for key, value in network.state_dict().items() if key not in tied}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
