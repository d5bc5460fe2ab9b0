"""MLM-Scoring (Salazar et al. 2020): the pseudo-log-likelihood of a text, one token masked at a time.

The masks of one text are inputs of one length and share batches; the last layer and the vocabulary are computed for
the masked place only.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from blendkit.errors import NoInputError
from blendkit.models.cuts import cut_to
from blendkit.models.loading import choose_device, choose_dtype, shared
from blendkit.models.text_tokenizer import TextTokenizer
from blendkit.pipeline.work import Job, Work
from blendkit.scorers.base import EMPTY, Item, ModelScorer, Scores
from blendkit.signature import Signature

# The parts of a head, one after the other, as transformers names them: RoBERTa and DeBERTa; BERT; ModernBERT; ELECTRA; DistilBERT.
HEADS = (
    ("lm_head",),
    ("cls",),
    ("head", "decoder"),
    ("generator_predictions", "generator_lm_head"),
    ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
)


class LoadedMLM:
    """A masked language model, as both its scorers read it.

    Raises:
        NoInputError: there is no such model, or it is no masked language model.
    """

    def __init__(self, model: str, device: str, dtype: str) -> None:
        import torch
        from transformers import AutoModelForMaskedLM

        from blendkit.models.encoder import load_pretrained
        from blendkit.models.encoder_reader import EncoderReader, longest_input

        where = choose_device(device)
        network, self.tokenizer = load_pretrained(AutoModelForMaskedLM, model, "masked language model")
        if self.tokenizer.mask_token_id is None:
            raise NoInputError(f"{model}: its tokenizer has no mask token, so it is no masked language model")
        self.texts = TextTokenizer(self.tokenizer)
        self.longest = longest_input(network, self.tokenizer)
        number_type = choose_dtype(dtype, where, "the metric mlm")
        head = _head(network, model)
        if number_type != torch.float32:
            # Its words are the encoder's embeddings, which shall have the number type, while the head stays in float32.
            head = deepcopy(head)
        self.reader = EncoderReader(network.base_model, self.tokenizer.pad_token_id, where, number_type, places_only=True)
        self.head = head.float().to(where)
        self.job = Job(f"mlm:{model}", self.log_probabilities)

    def log_probabilities(self, payloads: list[tuple[tuple[int, ...], int]]) -> list[float]:
        """log P of the token at each place, from the others, of (ids, place)."""
        import torch

        mask = self.tokenizer.mask_token_id
        rows = [[*ids[:place], mask, *ids[place + 1 :]] for ids, place in payloads]
        with torch.inference_mode():
            states = self.reader.at(rows, [[place] for _, place in payloads])
            logits = self.head(states)[:, 0].float()
            gold = torch.tensor([ids[place] for ids, place in payloads], device=logits.device)
            found: list[float] = (logits.gather(1, gold[:, None])[:, 0] - logits.logsumexp(-1)).tolist()
        return found


class MaskedLM(ModelScorer):
    """The sum over tokens of log P(token | all others), special tokens not scored."""

    about = "pseudo-log-likelihood of the candidate under a masked LM, summed over tokens"
    paper, bounds = "Salazar et al. 2020", "0 and below (nats)"
    needs_reference = False
    default_model = "roberta-large"
    plans_ahead = True
    empty = f"{EMPTY:g}"

    def __init__(self, name: str, model: str = default_model, device: str = "auto", dtype: str = "auto") -> None:
        super().__init__(name, model)
        self.loaded = shared(("mlm", model, device, dtype), lambda: LoadedMLM(model, device, dtype))
        self.tokenizer, self.longest = self.loaded.tokenizer, self.loaded.longest

    def rounds(self, items: list[Item]) -> Scores:
        """One work a token of each distinct text."""
        texts = list(dict.fromkeys(item.candidate for item in items))
        found = cut_to(self.longest, self.loaded.texts, texts, self.cuts, return_special_tokens_mask=True) if texts else {"input_ids": []}
        works, counts = [], []
        for row, special in zip(found["input_ids"], found.get("special_tokens_mask", []), strict=True):
            ids = tuple(row)
            places = [place for place, skip in enumerate(special) if not skip]
            counts.append(len(places))
            works += [Work(self.loaded.job, (ids, place), len(ids), (ids, place)) for place in places]
        values = iter((yield works))
        scores = {}
        for text, count in zip(texts, counts, strict=True):
            total = sum(next(values) for _ in range(count))
            scores[text] = self.combined(total, count) if count else EMPTY
        return [scores[item.candidate] for item in items]

    def combined(self, total: float, count: int) -> float:
        """The score of a text whose `count` tokens have `total` log-probability."""
        return total

    @property
    def signature(self) -> str:
        return str(Signature("mlm-norm" if isinstance(self, Normalised) else "mlm", model=self.model_at, max=self.longest))


class Normalised(MaskedLM):
    """The mean over tokens instead of the sum, which falls with every token more."""

    about = "the same, the mean over tokens"

    def combined(self, total: float, count: int) -> float:
        return total / count


def _head(network: Any, name: str) -> Any:
    """The module that makes logits over the vocabulary of states."""
    from torch import nn

    for parts in HEADS:
        if all(hasattr(network, part) for part in parts):
            return nn.Sequential(*(getattr(network, part) for part in parts))
    known = "BERT, RoBERTa, DeBERTa, ModernBERT, ELECTRA and DistilBERT have"
    raise NoInputError(f"{name}: a {type(network).__name__} has no head that is known here; {known}")
