"""SimCLS (Liu and Liu 2021), as LLM-Blender trains it: one encoder for x and candidate, and the cosine of their first tokens."""

from __future__ import annotations

from typing import Any

from blendkit.errors import NoInputError
from blendkit.models.cuts import Cuts, read_to
from blendkit.models.loading import choose_device, length_in, locate, read_config
from blendkit.models.number_type import encoder_dtype
from blendkit.models.text_tokenizer import TextTokenizer
from blendkit.pipeline.work import Job, Work
from blendkit.scorers.base import Item, ModelScorer, Scores
from blendkit.signature import Signature
from blendkit.terminal_text import count_of

SOURCE, CANDIDATE = "<source>", "<candidate>"


def with_markers(tokenizer: Any, network: Any, name: str) -> None:
    """Lets the tokenizer know `<source>` and `<candidate>`, as the reference's collators do.

    Raises:
        NoInputError: the encoder has no embeddings for them, so it was never trained to rank.
    """
    tokenizer.add_tokens([SOURCE, CANDIDATE])
    last = max(tokenizer.convert_tokens_to_ids([SOURCE, CANDIDATE]))
    if last >= network.config.vocab_size:
        raise NoInputError(
            f"{name} has {count_of(network.config.vocab_size, 'embedding')}, none for {SOURCE} and {CANDIDATE}: it was not trained as such a ranker"
        )


def grow_markers(tokenizer: Any, network: Any) -> None:
    """Adds `<source>` and `<candidate>` to a tokenizer and an encoder that is to be trained."""
    tokenizer.add_tokens([SOURCE, CANDIDATE])
    network.resize_token_embeddings(len(tokenizer), mean_resizing=False)


def simcls_ids(tokenizer: TextTokenizer, text: str, side: int, lengths: tuple[int, int], cuts: Cuts | None = None) -> tuple[int, ...]:
    """Token ids of an x (side 0) or a candidate (side 1); `cuts` counts."""
    return tuple(read_to(lengths[side], tokenizer, (SOURCE, CANDIDATE)[side] + tokenizer.material(text), cuts))


class SimCLS(ModelScorer):
    """A directory with an encoder whose vocabulary knows `<source>` and `<candidate>`, at its end where the tokenizer does not say so.

    Lengths come from its config (`source_maxlength`, `candidate_maxlength`; 128 each where it has none, the reference's).
    """

    about, paper, bounds = "cosine of x and candidate under a dual encoder trained to rank", "Liu and Liu 2021", "-1 to 1"
    needs_reference, needs_source = False, True
    default_model = ""
    plans_ahead = True
    empty = "the model's"

    def __init__(self, name: str, model: str, device: str = "auto", dtype: str = "auto") -> None:
        from blendkit.models.encoder import load_encoder
        from blendkit.models.encoder_reader import EncoderReader, longest_input

        super().__init__(name, model)
        self.device = choose_device(device)
        network, self.tokenizer = load_encoder(model)
        with_markers(self.tokenizer, network, model)
        self.texts = TextTokenizer(self.tokenizer)
        raw = read_config(locate(model), model)
        fits = longest_input(network, self.tokenizer)
        self.lengths = min(length_in(raw, model, 128, "source_maxlength"), fits), min(length_in(raw, model, 128, "candidate_maxlength"), fits)
        self.dtype = encoder_dtype(dtype, self.device, network.config, self.hints)
        self.reader = EncoderReader(network, self.tokenizer.pad_token_id, self.device, self.dtype, places_only=True)
        self.job = Job(f"simcls:{model}", self._states)

    def rounds(self, items: list[Item]) -> Scores:
        """Encodes each x and each candidate once."""
        from torch.nn import functional

        sources = list(dict.fromkeys(item.source for item in items))
        candidates = list(dict.fromkeys(item.candidate for item in items))
        keys = [(0, text) for text in sources] + [(1, text) for text in candidates]
        rows = [simcls_ids(self.texts, text, side, self.lengths, self.cuts) for side, text in keys]
        works = [Work(self.job, row, len(row), row) for row in rows]
        states = dict(zip(keys, (yield works), strict=True))
        return [float(functional.cosine_similarity(states[0, item.source], states[1, item.candidate], dim=0)) for item in items]

    def _states(self, payloads: list[Any]) -> list[Any]:
        """The first token's state of each input, on the CPU."""
        return list(self.reader.at(payloads, [[0]] * len(payloads))[:, 0].cpu())

    @property
    def signature(self) -> str:
        return str(Signature("simcls", model=self.model_at, max=f"{self.lengths[0]}+{self.lengths[1]}"))
