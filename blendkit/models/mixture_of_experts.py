"""The SummaReranker network (Ravaut et al. 2022, section 3): an encoder, a shared bottom, a mixture of experts, a tower a task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from blendkit.errors import NoInputError
from blendkit.models.loading import length_in, locate, read_config, read_weights, take_weights
from blendkit.models.pretrained import pretrained, untrained


class Expert(nn.Module):
    """A feed-forward network of one hidden layer."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(size, size), nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x).relu())  # type: ignore[no-any-return]


class MixtureOfExperts(nn.Module):
    """For each task, the best `k` experts by its gate, mixed in the space of their exponentials, as the reference code has it."""

    def __init__(self, tasks: int, size: int) -> None:
        super().__init__()
        self.k = tasks
        self.experts = nn.ModuleList([Expert(size) for _ in range(2 * tasks)])
        self.w_gate = nn.ParameterList([nn.Parameter(torch.zeros(size, 2 * tasks)) for _ in range(tasks)])
        # Public checkpoints use these names.
        self.w_noise = nn.ParameterList([nn.Parameter(torch.zeros(size, 2 * tasks)) for _ in range(tasks)])

    def forward(self, x: Tensor) -> list[Tensor]:
        """[n, H] for each task, from [n, H]."""
        outputs = torch.stack([expert(x) for expert in self.experts], dim=1)  # [n, experts, H]
        mixed = []
        for gate, noise in zip(self.w_gate, self.w_noise, strict=True):
            strengths = x @ gate
            if self.training:
                # Noisy gates (Shazeer et al. 2017), so that no expert is left out for good.
                strengths = strengths + torch.randn_like(strengths) * functional.softplus(x @ noise)
            logits, chosen = strengths.topk(self.k, dim=1)
            weights = logits.softmax(1)
            picked = outputs.gather(1, chosen[:, :, None].expand(-1, -1, outputs.shape[-1]))
            # log Σ w·exp(y): as a log-sum-exp, so that large outputs do not overflow.
            mixed.append((picked + weights.log()[:, :, None]).logsumexp(1))
        return mixed


class SummaRerankerHead(nn.Module):
    """Task logits [n, tasks] from first tokens' states [n, H]."""

    def __init__(self, tasks: int, size: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(size, size), nn.Linear(size, size)
        self.moe = MixtureOfExperts(tasks, size)
        self.towers = nn.ModuleList([nn.Linear(size, 1) for _ in range(tasks)])

    def forward(self, states: Tensor) -> Tensor:
        mixed = self.moe(self.fc2(self.fc1(states).relu()))
        return torch.cat([tower(part) for tower, part in zip(self.towers, mixed, strict=True)], dim=1)


def load_summareranker(name: str) -> tuple[Any, SummaRerankerHead, Any, dict[str, Any]]:
    """Encoder, head, tokenizer, and the ranker's config: `encoder` (a config), `n_tasks`, `source_maxlength`, `candidate_maxlength`.

    Raises:
        NoInputError: there is no such model, or it is no SummaReranker.
    """
    from transformers import AutoTokenizer

    folder = locate(name)
    config = read_config(folder, name)
    if config.get("ranker_type") != "summareranker" or "encoder" not in config:
        raise NoInputError(f"{name} is not a SummaReranker: its config.json lacks `ranker_type`: `summareranker` and `encoder`")
    config |= {key: length_in(config, name, 128, key) for key in ("source_maxlength", "candidate_maxlength")}
    encoder = untrained(config["encoder"], folder, name, "SummaReranker's encoder")
    weights = read_weights(folder)
    head = head_of(weights)
    inner = {key.removeprefix("pretrained_model."): value for key, value in weights.items() if key.startswith("pretrained_model.")}
    take_weights(encoder, inner, name, "the encoder", spare="pooler.")
    return encoder.float().eval(), head, pretrained(AutoTokenizer, name, "tokenizer"), config


def head_of(weights: dict[str, Tensor]) -> SummaRerankerHead:
    """The head that a checkpoint's weights describe.

    Raises:
        NoInputError: weights are missing.
    """
    try:
        head = SummaRerankerHead(sum(key.startswith("moe.w_gate.") for key in weights), len(weights["fc1.weight"]))
        missing = head.load_state_dict(weights, strict=False).missing_keys
    except (KeyError, RuntimeError) as error:
        raise NoInputError(f"not the weights of a SummaReranker: {' '.join(str(error).split())[:200]}") from error
    if missing:
        raise NoInputError(f"not the weights of a SummaReranker: {missing[0]} is missing")
    return head.float().eval()


def save_summareranker(folder: Path, encoder: Any, head: SummaRerankerHead, tokenizer: Any, source_maxlength: int, candidate_maxlength: int) -> None:
    """Writes what `load_summareranker` reads."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    lengths = {"source_maxlength": source_maxlength, "candidate_maxlength": candidate_maxlength}
    config = {
        "ranker_type": "summareranker",
        "n_tasks": len(head.towers),
        **lengths,
        "encoder": encoder.config.to_diff_dict() | {"model_type": encoder.config.model_type},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    weights = {f"pretrained_model.{key}": value for key, value in encoder.state_dict().items() if not key.startswith("pooler.")}
    save_file({key: value.detach().contiguous() for key, value in (weights | head.state_dict()).items()}, folder / "model.safetensors")
