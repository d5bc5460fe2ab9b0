"""The public API of `llm_blender` 0.0.2 over blendkit's own rankers and fusers, for code that was written for it.

    import blendkit.rankers.compat as llm_blender

Same arguments, same shapes and types of results. `batch_size` is taken and not needed: batches are made by
length, and no result depends on them. docs/migrating.md tells what else differs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blendkit.aggregate import matrix, max_logits, ranks_from_scores
from blendkit.pipeline.runner import apply
from blendkit.rankers import REFERENCES, schedules
from blendkit.rankers.conversations import INSTRUCTION, conversation_candidate, conversation_source
from blendkit.records import Record
from blendkit.terminal_text import count_of

MODES = ("[A,B]", "[B,A]", "[A,B]+[B,A]")
Texts = Sequence[str]


@dataclass
class BlenderConfig:
    """`device` None takes the best there is; `use_tqdm` is taken and ignored."""

    device: str | None = None
    use_tqdm: bool = True


class Blender:
    """Ranks, compares and fuses texts. Load a ranker or a fuser before its methods are called.

    Raises (all methods):
        RuntimeError: nothing is loaded for this.
        ValueError: arguments of different lengths, or a mode that there is not.
    """

    def __init__(self, blender_config: BlenderConfig | None = None, ranker_config: Any = None, fuser_config: Any = None) -> None:
        self.blender_config = blender_config or BlenderConfig()
        self.ranker: Any = None
        self.fuser: Any = None
        if ranker_config is not None:
            self.loadranker(ranker_config.load_checkpoint)
        if fuser_config is not None:
            self.loadfuser(fuser_config.model_name)

    def loadranker(self, ranker_path: str, device: Any = None, **kwargs: Any) -> None:
        """`source_maxlength`, `candidate_maxlength` and `fp16` (on a GPU; default True) count; other settings are ignored."""
        from blendkit.models.loading import choose_device
        from blendkit.rankers.pairranker import PairRanker

        chosen = choose_device(str(device or self.blender_config.device or "auto"))
        half = chosen.type != "cpu" and kwargs.get("fp16", True)
        self.ranker = PairRanker(str(ranker_path), device=str(chosen), dtype="float16" if half else "float32")
        self._set_lengths(kwargs.get("source_maxlength"), kwargs.get("candidate_maxlength"))

    def loadfuser(self, fuser_path: str, device: Any = None, **kwargs: Any) -> None:
        """`max_length` and `candidate_maxlength` count; other settings are ignored."""
        from blendkit.fusers.genfuser import GenFuser

        lengths = {key: kwargs[key] for key in ("max_length", "candidate_maxlength") if kwargs.get(key)}
        self.fuser = GenFuser(str(fuser_path), device=str(device or self.blender_config.device or "auto"), **lengths)

    def rank(
        self,
        inputs: Texts,
        candidates: Sequence[Texts],
        instructions: Texts | None = None,
        return_scores: bool = False,
        batch_size: int = 8,
        **rank_kwargs: Any,
    ) -> NDArray[Any]:
        """Ranks [n, N] (int32, 1 is best), or MaxLogits scores [n, N] (float32)."""
        sizes = {len(texts) for texts in candidates}
        if len(sizes) > 1 or 0 in sizes:
            raise ValueError("each input needs the same number of candidates, at least one")
        found = self._compare(inputs, candidates, instructions, schedules.full, **rank_kwargs)
        scores = np.array([max_logits(matrix(pairs, len(texts))) for pairs, texts in zip(found, candidates, strict=True)], dtype=np.float32)
        return scores if return_scores else _ranks(scores)

    def rank_with_ref(
        self,
        inputs: Texts,
        candidates: Sequence[Texts],
        instructions: Texts | None = None,
        return_scores: bool = False,
        batch_size: int = 8,
        ref_mode: str = "longest",
        ref_candidates: Texts | None = None,
        **rank_kwargs: Any,
    ) -> NDArray[Any]:
        """Ranks [n, N] (int32) by the margin over one text an input, or those margins [n, N] (float64).

        The text is `ref_candidates`, or the `ref_mode` (its name in the README, `mode`, works too) among the
        candidates: longest, shortest, median_length, first or last.
        """
        mode = str(rank_kwargs.pop("mode", ref_mode)).replace("_", "-")
        if ref_candidates is None:
            if mode not in REFERENCES:
                raise ValueError(f"ref_mode {ref_mode!r}: expected one of {', '.join(REFERENCES).replace('-', '_')}")
            ref_candidates = [texts[REFERENCES[mode].load()(texts)] for texts in candidates]
        elif len(ref_candidates) != len(inputs):
            raise ValueError(f"{len(ref_candidates)} ref_candidates for {count_of(len(inputs), 'input')}")
        pools = [[*texts, reference] for texts, reference in zip(candidates, ref_candidates, strict=True)]
        found = self._compare(inputs, pools, instructions, _against_last, **rank_kwargs)
        margins = []
        for pairs, pool in zip(found, pools, strict=True):
            m = matrix(pairs, len(pool))
            margins.append(m[:-1, -1] - m[-1, :-1])
        scores = np.array(margins)
        return scores if return_scores else _ranks(scores)

    def compare(
        self,
        inputs: Texts,
        candidates_A: Texts,
        candidates_B: Texts,
        instructions: Texts | None = None,
        batch_size: int = 4,
        return_logits: bool = False,
        mode: str = "[A,B]+[B,A]",
        **rank_kwargs: Any,
    ) -> NDArray[Any]:
        """Logits [n] (float32) that A is better than B, or whether it is, [n] (bool).

        As in `llm_blender`, `[B,A]` gives the logit of B shown first, that B is better.
        """
        if mode not in MODES:
            raise ValueError(f"mode {mode!r}: expected one of {', '.join(MODES)}")
        if len(candidates_A) != len(candidates_B):
            raise ValueError(f"{len(candidates_A)} candidates_A, {len(candidates_B)} candidates_B")
        pools = list(zip(candidates_A, candidates_B, strict=True))
        wanted = {"[A,B]": [(0, 1)], "[B,A]": [(1, 0)]}.get(mode, [(0, 1), (1, 0)])
        found = self._compare(inputs, pools, instructions, _only(wanted), **rank_kwargs)
        logits = np.array([pairs[0][2] - pairs[1][2] if len(pairs) == 2 else pairs[0][2] for pairs in found], dtype=np.float32)
        return logits if return_logits else logits > 0

    def compare_conversations(
        self,
        conversations_a: Sequence[Sequence[dict[str, str]]],
        conversations_b: Sequence[Sequence[dict[str, str]]],
        batch_size: int = 4,
        return_logits: bool = False,
        mode: str = "[A,B]+[B,A]",
    ) -> NDArray[Any]:
        """Compares the ASSISTANT's turns of conversations whose USER's turns are the same; results as `compare`'s."""
        if len(conversations_a) != len(conversations_b):
            raise ValueError(f"{len(conversations_a)} conversations_a, {len(conversations_b)} conversations_b")
        for conversation in (*conversations_a, *conversations_b):
            roles = [turn["role"] for turn in conversation]
            if roles != ["USER", "ASSISTANT"] * (len(roles) // 2):
                raise ValueError(f"expected turns of USER and ASSISTANT in alternation, got {roles}")
        for first, second in zip(conversations_a, conversations_b, strict=True):
            if [turn["content"] for turn in first[::2]] != [turn["content"] for turn in second[::2]]:
                raise ValueError("two conversations are compared by their answers: the USER's turns must be the same")
        sources = [conversation_source([turn["content"] for turn in turns[::2]]).removeprefix(INSTRUCTION) for turns in conversations_a]
        sides = [
            [conversation_candidate([turn["content"] for turn in turns[1::2]]) for turns in conversations]
            for conversations in (conversations_a, conversations_b)
        ]
        return self.compare(sources, sides[0], sides[1], [INSTRUCTION] * len(sources), batch_size, return_logits, mode)

    def get_best_of_n(
        self,
        inputs: Texts,
        candidates: Sequence[Texts],
        instructions: Texts | None = None,
        pairrm_cmp_type: str = "bubble",
        return_all: bool = False,
        batch_size: int = 8,
    ) -> list[Any]:
        """The best text of each input by one bubble run (or the `full` matrix); with `return_all` all texts, the best first."""
        return self._pick(inputs, candidates, instructions, pairrm_cmp_type, return_all, best=True)

    def get_worst_of_n(
        self,
        inputs: Texts,
        candidates: Sequence[Texts],
        instructions: Texts | None = None,
        pairrm_cmp_type: str = "bubble",
        return_all: bool = False,
        batch_size: int = 8,
    ) -> list[Any]:
        """As `get_best_of_n`, with the worst."""
        return self._pick(inputs, candidates, instructions, pairrm_cmp_type, return_all, best=False)

    def fuse(self, inputs: Texts, candidates: Sequence[Texts], instructions: Texts | None = None, batch_size: int = 4, **generate_kwargs: Any) -> list[str]:
        """One fused text an input; `generate_kwargs` go to `generate`, `candidate_max_length` to the prompt."""
        if self.fuser is None:
            raise RuntimeError("no fuser is loaded; call loadfuser first")
        settings = dict(generate_kwargs)
        length = settings.pop("candidate_max_length", None) or self.fuser.candidate_maxlength
        before = self.fuser.generation, self.fuser.candidate_maxlength
        self.fuser.generation = {"num_beams": 4, "max_new_tokens": length, "do_sample": False, **settings}
        self.fuser.candidate_maxlength = length
        records = _records(inputs, candidates, None)
        for number, record in enumerate(records):
            record["instruction"], record["input"] = instructions[number] if instructions else "", inputs[number]
            record["top"] = list(range(len(candidates[number])))
        try:
            return [record["candidates"][-1]["text"] for record in apply(self.fuser, records)]
        finally:
            self.fuser.generation, self.fuser.candidate_maxlength = before

    def rank_and_fuse(
        self,
        inputs: Texts,
        candidates: Sequence[Texts],
        instructions: Texts | None = None,
        return_scores: bool = False,
        batch_size: int = 4,
        top_k: int = 3,
        **generate_kwargs: Any,
    ) -> tuple[list[str], NDArray[Any]]:
        """Fused texts of the top K, and the ranks (or scores) [n, N]."""
        scores = self.rank(inputs, candidates, instructions, return_scores=True)
        best = [[texts[index] for index in np.argsort(-row, kind="stable")[:top_k]] for row, texts in zip(scores, candidates, strict=True)]
        return self.fuse(inputs, best, instructions, batch_size, **generate_kwargs), scores if return_scores else _ranks(scores)

    def n_generate(
        self,
        model: Any,
        model_tokenizer: Any,
        inputs: Texts,
        instructions: Texts | None = None,
        n: int = 5,
        sampling_mode: str | None = "top_p_sampling",
        batch_size: int = 4,
        **generate_kwargs: Any,
    ) -> list[list[str]]:
        """n sampled texts an input from a transformers model (or a `vllm.LLM`)."""
        from blendkit.rankers.sampling import sample

        prompts = [f"{instruction}\n{text}" for instruction, text in zip(instructions, inputs, strict=True)] if instructions else list(inputs)
        return sample(model, model_tokenizer, prompts, n, sampling_mode, batch_size, generate_kwargs)

    def best_of_n_generate(
        self,
        model: Any,
        model_tokenizer: Any,
        inputs: Texts,
        instructions: Texts | None = None,
        n: int = 5,
        sampling_mode: str | None = "top_p_sampling",
        batch_size: int = 4,
        pairrm_cmp_type: str = "bubble",
        return_all: bool = False,
        **generate_kwargs: Any,
    ) -> list[Any]:
        """Samples n texts an input and returns the best (with `return_all` all of them, the best first)."""
        sampled = self.n_generate(model, model_tokenizer, inputs, instructions, n, sampling_mode, batch_size, **generate_kwargs)
        return self.get_best_of_n(inputs, sampled, instructions, pairrm_cmp_type, return_all, batch_size)

    def _pick(self, inputs: Texts, candidates: Sequence[Texts], instructions: Texts | None, kind: str, return_all: bool, best: bool) -> list[Any]:
        if kind not in ("bubble", "full"):
            raise ValueError(f"pairrm_cmp_type {kind!r}: expected bubble or full")
        if all(len(texts) == 1 for texts in candidates):
            return [list(texts) for texts in candidates] if return_all else [texts[0] for texts in candidates]
        sign = 1 if best else -1
        if kind == "full":
            scores = self.rank(inputs, candidates, instructions, return_scores=True)
            orders = [np.argsort(-sign * row, kind="stable").tolist() for row in scores]
        else:
            found = self._compare(inputs, candidates, instructions, _signed_bubble(sign))
            orders = [_bubble_order(pairs, len(texts), sign) for pairs, texts in zip(found, candidates, strict=True)]
        picked = [[texts[index] for index in order] for order, texts in zip(orders, candidates, strict=True)]
        return picked if return_all else [texts[0] for texts in picked]

    def _compare(
        self, inputs: Texts, candidates: Sequence[Texts], instructions: Texts | None, schedule: Callable[..., schedules.ScheduleRounds], **rank_kwargs: Any
    ) -> list[list[list[Any]]]:
        """The compared pairs [i, j, logit] of each input."""
        if self.ranker is None:
            raise RuntimeError("no ranker is loaded; call loadranker first")
        for name, many in (("candidates", candidates), ("instructions", instructions)):
            if many is not None and len(many) != len(inputs):
                raise ValueError(f"{len(many)} {name} for {count_of(len(inputs), 'input')}")
        config = self.ranker.inputs.config
        before = config.source_maxlength, config.candidate_maxlength
        self._set_lengths(rank_kwargs.get("source_max_length"), rank_kwargs.get("candidate_max_length"))
        self.ranker.schedule = schedule
        try:
            return [record["comparisons"]["pairrm"]["pairs"] for record in apply(self.ranker, _records(inputs, candidates, instructions), window=64)]
        finally:
            self._set_lengths(*before)

    def _set_lengths(self, source: int | None, candidate: int | None) -> None:
        config = self.ranker.inputs.config
        self.ranker.inputs.config = replace(
            config, source_maxlength=source or config.source_maxlength, candidate_maxlength=candidate or config.candidate_maxlength
        )


def install() -> None:
    """Lets this module stand in for `llm_blender`, for libraries that import it by that name themselves."""
    sys.modules["llm_blender"] = sys.modules[__name__]


def _records(inputs: Texts, candidates: Sequence[Texts], instructions: Texts | None) -> list[Record]:
    # llm_blender puts nothing between instruction and input.
    sources = [instruction + text for instruction, text in zip(instructions, inputs, strict=True)] if instructions else inputs
    return [
        {"id": str(number), "instruction": source, "candidates": [{"model": str(index), "text": text} for index, text in enumerate(texts)]}
        for number, (source, texts) in enumerate(zip(sources, candidates, strict=True))
    ]


def _ranks(scores: NDArray[Any]) -> NDArray[np.int32]:
    return np.array([ranks_from_scores(row.tolist()) for row in scores], dtype=np.int32)


def _only(pairs: list[schedules.Pair]) -> Callable[..., schedules.ScheduleRounds]:
    def schedule(n: int, rng: Any) -> schedules.ScheduleRounds:
        yield pairs
        return None

    return schedule


def _against_last(n: int, rng: Any) -> schedules.ScheduleRounds:
    last = n - 1
    yield [pair for index in range(last) for pair in ((index, last), (last, index))]
    return None


class _AsGiven:
    """In place of a random generator: bubble runs start from the order of the candidates."""

    def sample(self, population: range, k: int) -> list[int]:
        return list(population)[:k]


def _signed_bubble(sign: int) -> Callable[..., schedules.ScheduleRounds]:
    """One bubble run that carries the best (1) or the worst (-1) to the end."""

    def schedule(n: int, rng: Any) -> Generator[list[schedules.Pair], list[float], list[int] | None]:
        run = schedules.bubble(n, _AsGiven())  # type: ignore[arg-type]
        try:
            pairs = next(run)
            while True:
                logits = yield pairs
                pairs = run.send([sign * logit for logit in logits])
        except StopIteration as done:
            found: list[int] | None = done.value
            return found

    return schedule


def _bubble_order(pairs: list[list[Any]], n: int, sign: int) -> list[int]:
    """The winner of a bubble run, then those it left behind, in the order of the run."""
    if n == 1:
        return [0]
    left, winner = [], 0
    for forward, backward in zip(pairs[::2], pairs[1::2], strict=True):
        current, following = forward[:2]
        winner, loser = (current, following) if sign * (forward[2] - backward[2]) > 0 else (following, current)
        left.append(loser)
    return [winner, *left]
