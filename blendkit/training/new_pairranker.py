"""What a training of PairRanker starts from: an encoder with a fresh head, or a checkpoint; of the paper's form, or late-paired."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch

from blendkit.errors import UsageError
from blendkit.models.expert import without_expert
from blendkit.models.pair_inputs import MARKERS
from blendkit.models.pairrm import BARE, PairRM, PairRMConfig, load_pairrm, without_relevance
from blendkit.models.pretrained import pretrained
from blendkit.terminal_text import count_of
from blendkit.training.examples import Pairing
from blendkit.training.kinds import NewRanker
from blendkit.training.late import LatePairRankerTrainee
from blendkit.training.pairranker import PairRankerTrainee

NEWLINE = "\N{SYMBOL FOR NEWLINE}"


class PairRankers:
    """The row `pairranker` of the table of rankers that can be trained."""

    @staticmethod
    def start(new: NewRanker, pairing: Pairing) -> PairRankerTrainee:
        """Makes a ranker that is ready to be trained.

        Raises:
            UsageError: a setting that there is not, or a checkpoint of another number of tasks.
            NoInputError: there is no such model.
        """
        if new.positions not in ("running", "segment"):
            raise UsageError(f"--positions {new.positions}: expected running or segment")
        if new.paired_layers not in (None, 0, 1, 2):
            raise UsageError(f"--paired-layers {new.paired_layers}: expected 0, 1 or 2")
        if new.init is not None:
            model, tokenizer = load_pairrm(new.init)
            # An expert and a head for relevance are put to a ranker that is trained already.
            model = without_relevance(without_expert(model))
            if model.config.n_tasks != new.tasks:
                raise UsageError(f"--init {new.init} has {count_of(model.config.n_tasks, 'task')}, and {count_of(new.tasks, 'label is', 'labels are')} given")
            model.config.source_maxlength = new.source_maxlength or model.config.source_maxlength
            model.config.candidate_maxlength = new.candidate_maxlength or model.config.candidate_maxlength
        else:
            model, tokenizer = new_ranker(str(new.backbone), new.source_maxlength or 128, new.candidate_maxlength or 128, new.positions, new.tasks)
        if new.candidate_bias is not None:
            model.config.candidate_bias = new.candidate_bias
        if new.paired_layers is not None:
            model = late_paired(model, new.paired_layers)
        options: dict[str, Any] = {"loss": new.loss, "mode": new.mode, "candidates": new.candidates, "micro_tokens": new.micro_tokens}
        if model.config.paired_layers is not None:
            return LatePairRankerTrainee(model, tokenizer, pairing, checkpointing=new.checkpointing, **options)
        if new.checkpointing:
            model.pretrained_model.gradient_checkpointing_enable()  # type: ignore[operator]
        return PairRankerTrainee(model, tokenizer, pairing, **options)


def new_ranker(backbone: str, source_maxlength: int, candidate_maxlength: int, positions: str, tasks: int = 1) -> tuple[PairRM, Any]:
    """Makes a PairRM with a fresh head of `tasks` outputs on an encoder of the hub or a directory, and a tokenizer with its markers."""
    from transformers import AutoModel, AutoTokenizer

    what = "encoder that a ranker could start from"
    tokenizer = keep_line_breaks(pretrained(AutoTokenizer, backbone, what))
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKERS)})
    encoder = pretrained(AutoModel, backbone, what, dtype=torch.float32)
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if positions == "segment":
        _three_token_types(encoder)
    config = PairRMConfig(source_maxlength, candidate_maxlength, tasks, positions=positions, encoder=encoder.config.to_dict())
    return PairRM(config, encoder), tokenizer


def late_paired(model: PairRM, paired_layers: int | None) -> PairRM:
    """The same weights as a late-paired ranker's, or with None as one's that reads each pair together.

    Those that a ranker with as many paired layers has beside them are kept, else they start from 0. An expert and a head for relevance are left out.
    """
    found = PairRM(replace(model.config, paired_layers=paired_layers, **BARE), model.pretrained_model)
    same = model.config.paired_layers == paired_layers
    found.load_state_dict({name: value for name, value in model.state_dict().items() if same or name != "paired_bias"}, strict=False)
    return found


def keep_line_breaks(tokenizer: Any) -> Any:
    """Makes a run of line breaks one token of its own, where BERT's normalizer would make it a space."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"].get("vocab", {})
    if (state.get("normalizer") or {}).get("type") != "BertNormalizer" or "[unused1]" not in vocabulary:
        return tokenizer
    vocabulary[NEWLINE] = vocabulary.pop("[unused1]")
    replace = {"type": "Replace", "pattern": {"Regex": "\\s*\\n\\s*"}, "content": f" {NEWLINE} "}
    state["normalizer"] = {"type": "Sequence", "normalizers": [replace, state["normalizer"]]}
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    names = {key: getattr(tokenizer, key) for key in ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), **names)


def _three_token_types(encoder: Any) -> None:
    """Gives the encoder three token types: 0 is x, 1 and 2 are the candidates. Each starts near a type that pre-training knows.

    Raises:
        UsageError: an encoder without token types, which cannot be given any.
    """
    if encoder.config.model_type == "mpnet":
        # `RoleMPNet` makes them.
        encoder.config.type_vocab_size = 3
        return
    if getattr(encoder.embeddings, "token_type_embeddings", None) is None:
        raise UsageError(f"--positions segment: a {type(encoder).__name__} has no token types to tell the texts by; --positions running needs none")
    old = encoder.embeddings.token_type_embeddings.weight.data
    rows = torch.stack([old[0] + 0.02 * torch.randn_like(old[0]), old[0], old[1 % len(old)]])
    encoder.embeddings.token_type_embeddings = torch.nn.Embedding(3, rows.shape[1], _weight=rows)
    encoder.config.type_vocab_size = 3
