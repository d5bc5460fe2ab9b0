"""GenFuser (LLM-Blender, section 4): a seq2seq model reads x and the top K and writes the answer.

Prompt, truncation and beam search are the reference implementation's, so that llm-blender/gen_fuser_3b
sees what it was trained on.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from blendkit.errors import RecordError, expect_at_least
from blendkit.fusers.base import appended, top_candidates
from blendkit.models.cuts import Cuts, check_on_truncate, read_to
from blendkit.models.fast.rows import groups
from blendkit.models.loading import choose_device, choose_dtype, decoding_budget, fingerprint
from blendkit.models.pretrained import pretrained
from blendkit.models.text_tokenizer import TextTokenizer
from blendkit.pipeline.stage import Stage
from blendkit.pipeline.work import Job, Work
from blendkit.records import Record, source_text
from blendkit.registry import flag_of
from blendkit.signature import Signature
from blendkit.specs import default_name
from blendkit.terminal_text import count_of
from blendkit.version import VERSION

ENDING = "</s>Summarize candidates into a better one for the given instruction:"


class GenFuser(Stage):
    """Appends the fused candidate, named by the model unless `name` says otherwise.

    Raises:
        UsageError: a number is out of its range.
        NoInputError: there is no such model, or it is no seq2seq model.
    """

    name = "fuse"
    window = 32

    def __init__(
        self,
        model: str,
        name: str | None = None,
        *,
        num_beams: int = 4,
        max_new_tokens: int = 512,
        max_length: int = 1024,
        candidate_maxlength: int = 128,
        on_truncate: str = "warn",
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        check_on_truncate(on_truncate)
        expect_at_least(
            {"num_beams": 1, "max_new_tokens": 1, "max_length": 8, "candidate_maxlength": 1},
            {"num_beams": num_beams, "max_new_tokens": max_new_tokens, "max_length": max_length, "candidate_maxlength": candidate_maxlength},
        )
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device, "GenFuser")
        self.model_name, self.fused_name = model, name or default_name(model)
        what = "seq2seq model that GenFuser could be"
        self.model = pretrained(AutoModelForSeq2SeqLM, model, what, dtype=self.dtype).to(self.device).eval()
        self.tokenizer = pretrained(AutoTokenizer, model, what)
        self.texts = TextTokenizer(self.tokenizer)
        # Everything that `generate` takes may stand here; what the signature names is set by the arguments.
        self.generation: dict[str, Any] = {"num_beams": num_beams, "max_new_tokens": max_new_tokens, "do_sample": False}
        self.job = Job(self.fused_name, self._fused)
        # The weights are there already.
        self.batch_tokens = decoding_budget(self.device, self.model.config.get_text_config(decoder=True), self.dtype.itemsize, 0)
        # No prompt of a pass of the encoder is shorter than this part of the longest: a GPU would wait for a pass for each length.
        self.full = 0.8 if self.device.type == "cuda" else 1.0
        if self.device.type == "cuda":
            self.window = 128
        self.max_length, self.candidate_maxlength = max_length, candidate_maxlength
        self.on_truncate, self.prompts, self.candidates = on_truncate, Cuts(), Cuts()
        lengths = {"candidate": candidate_maxlength, "input": max_length, "new": max_new_tokens}
        self.signature = str(Signature("genfuser", model=f"{model}@{fingerprint(model)}", beams=num_beams, **lengths, v=VERSION))

    def plan(self, record: Record) -> list[Work]:
        """One prompt.

        Raises:
            RecordError: no top candidates; or a candidate or the prompt is too long under `--on-truncate fail`.
        """
        texts = [record["candidates"][index]["text"] for index in top_candidates(record)]
        if record.get("messages"):
            instruction, source = "", source_text(record)
        else:
            instruction, source = record.get("instruction") or "", record.get("input") or ""
        prompts, candidates = Cuts(), Cuts()
        prompt = fuser_prompt(instruction, source, texts, self.texts, self.candidate_maxlength, candidates)
        ids = tuple(read_to(self.max_length, self.texts, prompt, prompts, add_special_tokens=False))
        if self.on_truncate == "fail":
            self._refuse("candidates", f"{candidates.inputs_cut} of {count_of(len(texts), 'text')}: the longest has", candidates, "candidate_maxlength")
            self._refuse("", "the prompt has", prompts, "max_length")
        self.prompts.add(prompts)
        self.candidates.add(candidates)
        # Each beam keeps keys and values of what it reads and of all that it may write.
        return [Work(self.job, ids, self.generation["num_beams"] * (len(ids) + self.generation["max_new_tokens"]), ids, len(ids))]

    def _refuse(self, field: str, what: str, cuts: Cuts, length: str) -> None:
        if cuts.inputs_cut:
            more = f"{what} {count_of(cuts.tokens_cut, 'token')} more than the {getattr(self, length):,} that fit"
            raise RecordError(field, f"too long for {self.model_name}: {more}; {flag_of(length)} lets more in, --on-truncate warn cuts them")

    @torch.inference_mode()
    def _fused(self, payloads: list[tuple[int, ...]]) -> list[dict[str, Any]]:
        """Beam search; text and why it ended."""
        output = self.model.generate(**self._encoded(payloads), **self.generation)
        end = self.model.generation_config.eos_token_id
        ends = set(end if isinstance(end, list) else [end])
        return [
            {
                "text": self.tokenizer.decode(ids, skip_special_tokens=True).strip(),
                "finish_reason": "stop" if ends & set(ids.tolist()[1:]) else "length",
            }
            for ids in output
        ]

    def _encoded(self, rows: list[tuple[int, ...]]) -> dict[str, Any]:
        """The encoder's states of a batch, prompts of about one length encoded together (`full`), and the mask that decoding needs."""
        from transformers.modeling_outputs import BaseModelOutput

        width = max(map(len, rows))
        states = torch.zeros(len(rows), width, self.model.config.d_model, dtype=self.dtype, device=self.device)
        mask = torch.zeros(len(rows), width, dtype=torch.long, device=self.device)
        encoder = self.model.get_encoder()
        lengths = [len(row) for row in rows]
        for places in groups(lengths, lambda longest: 0, self.full):
            longest = lengths[places[0]]
            ids = torch.tensor([[*rows[place], *[0] * (longest - lengths[place])] for place in places], device=self.device)
            real = torch.tensor([[1] * lengths[place] + [0] * (longest - lengths[place]) for place in places], device=self.device)
            states[places, :longest] = encoder(input_ids=ids, attention_mask=real).last_hidden_state
            mask[places, :longest] = real
        return {"encoder_outputs": BaseModelOutput(last_hidden_state=states), "attention_mask": mask}

    def finish(self, record: Record, results: list[dict[str, Any]]) -> None:
        """Appends the fused candidate."""
        result = results[0]
        appended(record, self.fused_name, result["text"], top_candidates(record), finish_reason=result["finish_reason"])

    def describe(self) -> dict[str, Any]:
        """Signature, model, device, number type, and what was cut."""
        return {
            "signatures": [self.signature],
            "models": {self.model_name: fingerprint(self.model_name)},
            "device": str(self.device),
            "dtype": str(self.dtype),
            "truncation": {"prompts": asdict(self.prompts), "candidates": asdict(self.candidates)},
        }

    def warnings(self) -> list[str]:
        """What was cut."""
        cut = {"candidate_maxlength": self.candidates.message("candidates"), "max_length": self.prompts.message("prompts")}
        return [f"{line}; {flag_of(length)} lets more in, --on-truncate fail stops instead" for length, lines in cut.items() for line in lines]


def fuser_prompt(instruction: str, source: str, candidates: list[str], tokenizer: TextTokenizer, candidate_maxlength: int, cuts: Cuts | None = None) -> str:
    """The reference's input text, for `tokenizer.read`; a candidate of more than `candidate_maxlength` tokens is cut, and ends in `...`; `cuts` counts."""
    shown = []
    for number, text in enumerate(candidates):
        (ids,) = tokenizer([text], add_special_tokens=False)["input_ids"]
        if cuts is not None:
            cuts.count(len(ids), candidate_maxlength)
        if len(ids) > candidate_maxlength:
            text = tokenizer.tokenizer.decode(ids[:candidate_maxlength]) + "..."
        shown.append(f"Candidate {number}: <extra_id_{number}>:{tokenizer.material(text)}")
    return "</s>".join([f"Instruction: {tokenizer.material(instruction)}", f"Input: {tokenizer.material(source)}", *shown]) + ENDING
