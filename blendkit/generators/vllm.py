"""Text generation with vLLM in this process: it gets a window's prompts at once, and what prompts have in common at their beginning is computed once."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from blendkit.errors import BlendkitError, UsageError, require
from blendkit.generators.answers import Answers
from blendkit.generators.base import Completion, Prompt, TextModel
from blendkit.generators.options import Sampling
from blendkit.generators.prompting import EncodedPrompt, Prompting, PromptTruncation, placed, positions_of
from blendkit.generators.reasoning import Room
from blendkit.generators.vllm_faults import fault_of, fault_of_start
from blendkit.models.gguf import is_gguf
from blendkit.models.loading import choose_device, choose_dtype, fingerprint, locate
from blendkit.models.pretrained import decoding_of, pretrained
from blendkit.streams.standard_streams import stdout_as_stderr

WHAT = "model that generates text"
# What vLLM is started with; a SPEC's own settings stand above it. Log-probabilities are the model's, before any sampling setting.
SETTINGS = {"enable_prefix_caching": True, "logprobs_mode": "raw_logprobs", "use_tqdm_on_load": False}
# On a CPU vLLM 0.32 dies of a prompt with a seed that it computes in parts ("CPU Generator does not use offset").
ON_CPU = {"enable_chunked_prefill": False}
# Settings that are given otherwise.
FLAGS = {
    "model": "what stands before the question mark", "tokenizer": "the model's own", "dtype": "--dtype", "seed": "--seed",
    "trust_remote_code": "--trust-remote-code", "logprobs_mode": "raw_logprobs, always",
}  # fmt: skip
# The engine lives in this process, so that nothing is left behind however it ends; logs are for those who ask for them, and nobody is called.
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_LOGGING_STREAM": "ext://sys.stderr", "VLLM_NO_USAGE_STATS": "1"}
Asked = tuple[list[int], dict[str, Any]]


class VllmModel(TextModel):
    """`MODEL` or `MODEL?NAME=VALUE&…`, a directory or a hub id with arguments of `vllm.LLM`, each value JSON or else a text.

    The engine starts with the first batch, and ends when it is put away or closed.

    Raises:
        UsageError: vLLM is not installed, or settings or a device that cannot be.
        NoInputError: there is no such model.
    """

    # It batches by itself, and the more it has the better.
    budgeted = False
    window = 256

    def __init__(self, model: str, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False, on_truncate: str = "warn") -> None:
        from transformers import AutoConfig, AutoTokenizer

        require("vllm", "vllm", "a vllm: model", "vLLM")
        self.spec, self.trust = f"vllm:{model}", trust_remote_code
        self.name, self.settings = settings_of(model)
        if is_gguf(self.name):
            raise UsageError(f"-m {self.spec}: vLLM is given directories and hub ids; a GGUF file loads without `vllm:`")
        self.device = choose_device("auto").type
        if choose_device(device).type != self.device or ":" in device:
            raise UsageError(f"--device {device}: vLLM takes the device that it was built for, here {self.device}; of GPUs CUDA_VISIBLE_DEVICES names which")
        # Of a quantised model vLLM knows best which type it needs.
        self.dtype = "auto" if dtype == "auto" and self.device == "cuda" else str(choose_dtype(dtype, choose_device("auto"), "vLLM")).removeprefix("torch.")
        config = pretrained(AutoConfig, self.name, WHAT, trust_remote_code=trust_remote_code)
        tokenizer = pretrained(AutoTokenizer, self.name, WHAT, trust_remote_code=trust_remote_code)
        # vLLM knows better, once it has started.
        longest = self.settings.get("max_model_len")
        self.prompting = Prompting(tokenizer, self.spec, longest if isinstance(longest, int) and longest > 0 else positions_of(config), on_truncate)
        turns = self.prompting.conversations.turn_end() if self.prompting.texts.templated else set()
        ends = {*decoding_of(self.name, config)["eos_token_id"], *turns, tokenizer.eos_token_id} - {None}
        self.answers = Answers(tokenizer, ends, -1)
        self._engine: Any = None
        self._fault: BlendkitError | None = None
        self.room, self.truncation = Room(), PromptTruncation()

    def start(self) -> Any:
        """The `vllm.LLM`, started when it is first needed. What kept it from starting once will do so again."""
        if self._engine is None:
            if self._fault is not None:
                raise self._fault
            try:
                self._engine = self._started()
            except Exception as error:
                self._fault = fault_of_start(error, self.spec, self.settings)
                raise self._fault from error
            known = self._engine.llm_engine.model_config
            self.prompting.positions, self.dtype = known.max_model_len, str(known.dtype).removeprefix("torch.")
        return self._engine

    def _started(self) -> Any:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        folder = str(locate(self.name))
        with stdout_as_stderr():
            from vllm import LLM

            settings = SETTINGS | ({} if self.device == "cuda" else ON_CPU) | self.settings
            return LLM(model=folder, tokenizer=folder, dtype=self.dtype, trust_remote_code=self.trust, **settings)

    def put_away(self) -> None:
        """Ends the engine and frees its memory; the next batch starts it again."""
        engine, self._engine = self._engine, None
        if engine is None:
            return
        with stdout_as_stderr():
            from vllm.distributed import cleanup_dist_env_and_memory

            engine.llm_engine.engine_core.shutdown()
            del engine
            gc.collect()
            cleanup_dist_env_and_memory()

    def close(self) -> None:
        """Ends the engine, so that no process of its is left."""
        self.put_away()

    def check(self, sampling: Sampling) -> None:
        """Raises UsageError for a decoding that vLLM does not have, or has in another form than transformers."""
        if sampling.beams > 1 or sampling.typical_p < 1:
            raise UsageError(f"--decoding {sampling.method}: {self.spec} has no such method; the same model without `vllm:` has")

    def length(self, prompt: Prompt) -> int:
        """Tokens of the prompt."""
        return self.prompting.length(prompt)

    def complete(self, prompts: list[Prompt], sampling: Sampling) -> list[Completion | Exception]:
        """Completes a window's prompts. Each is sampled by its own seed."""
        cut: dict[int, int] = {}
        found = self.room.complete(lambda some, wider: self._completed(some, wider, cut), prompts, sampling)
        self.truncation.add(cut.values())
        return found

    def _completed(self, prompts: list[Prompt], sampling: Sampling, cut: dict[int, int]) -> list[Completion | Exception]:
        """The answers, or a prompt's fault; `cut` is told the tokens that were cut off each prompt, by its identity."""
        self.check(sampling)
        self.start()  # the engine says how long a prompt may be

        def encode(prompt: Prompt) -> tuple[Prompt, EncodedPrompt]:
            encoded = self.prompting.encoded(prompt, sampling.max_new_tokens, sampling.effort)
            cut[id(prompt)] = encoded.cut
            return prompt, encoded

        def written(good: list[tuple[Prompt, EncodedPrompt]]) -> list[Completion]:
            outputs = self._generated([(encoded.ids, self._parameters(prompt, sampling, encoded)) for prompt, encoded in good])
            return [
                self._completion(output, encoded, _stops(prompt, sampling), sampling.logprobs) for (prompt, encoded), output in zip(good, outputs, strict=True)
            ]

        return placed(prompts, encode, written)

    def _parameters(self, prompt: Prompt, sampling: Sampling, encoded: EncodedPrompt) -> dict[str, Any]:
        """Arguments of vLLM's SamplingParams."""
        # vLLM would find a stop in the reasoning, too; behind it, the stop is found when all is written.
        reasons = encoded.opened or bool(self.room.given) or sampling.effort not in (None, "none")
        return {
            "max_tokens": encoded.room,
            "temperature": sampling.temperature,
            "top_p": max(sampling.top_p, 1e-6),  # it has no 0
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "seed": prompt.seed,
            "stop": [] if reasons else _stops(prompt, sampling),
            "stop_token_ids": sorted(self.answers.ends),
            "logprobs": 0 if sampling.logprobs else None,
            # A stop may be a special token.
            "skip_special_tokens": False,
        }

    def _completion(self, output: Any, encoded: EncodedPrompt, stops: list[str], logprobs: bool) -> Completion:
        written = list(output.token_ids)
        found = self.answers.completion(written, len(encoded.ids), stops, encoded.opened)
        if logprobs:
            found = replace(found, logprob=output.cumulative_logprob / max(1, len(written)))
        # vLLM may know of ends that the checkpoint's files do not name.
        return found if found.finish_reason == "stop" else replace(found, finish_reason=output.finish_reason)

    def likelihoods(self, prompts: list[Prompt], answers: list[str], begun: list[str] | None = None) -> list[list[float] | Exception]:
        """Log-probability, in nats, of each of the answers as the continuation of each prompt, [prompts][answers]; or the prompt's fault.

        `begun` are texts that the model's turn begins with. Each token of an answer is one request, which may write that token
        alone: unlike log-probabilities of the prompt, these are had for prompts that were computed before.
        """
        self.start()

        def encode(asked: tuple[Prompt, str]) -> list[list[tuple[tuple[int, ...], int]]]:
            """For each answer its tokens, each with all ids before it."""
            prompt, start = asked
            encoded = self.prompting.settled(prompt, start, answers)
            self.truncation.add([encoded.cut])
            head, tails = self.prompting.behind(prompt, encoded, answers)
            return [[((*head, *tail[:place]), token) for place, token in enumerate(tail)] for tail in tails]

        return placed(zip(prompts, begun or [""] * len(prompts), strict=True), encode, self._weighed)

    def _weighed(self, prompts: list[list[list[tuple[tuple[int, ...], int]]]]) -> list[list[float]]:
        """[prompts][answers], of the answers' tokens; equal steps are asked for once."""
        steps = {step: 0.0 for ways in prompts for way in ways for step in way}
        one_token = {"max_tokens": 1, "temperature": 0.0, "logprobs": 0}
        outputs = self._generated([([*head], {**one_token, "allowed_token_ids": [token]}) for head, token in steps])
        for step, output in zip(steps, outputs, strict=True):
            steps[step] = output.logprobs[0][step[1]].logprob
        return [[sum(steps[step] for step in way) for way in ways] for ways in prompts]

    def _generated(self, asked: Sequence[Asked]) -> list[Any]:
        """vLLM's output for each prompt's ids and parameters. Those that begin alike go side by side, so that what they share is still there."""
        order = sorted(range(len(asked)), key=lambda place: asked[place][0])
        outputs: list[Any] = [None] * len(asked)
        try:
            with stdout_as_stderr():
                from vllm import SamplingParams

                parameters = [SamplingParams(**asked[place][1]) for place in order]
                found = self.start().generate([{"prompt_token_ids": asked[place][0]} for place in order], parameters, use_tqdm=False) if asked else []
        except Exception as error:
            self.put_away()  # nobody knows what it is still busy with
            raise fault_of(error, self.spec) from error
        for place, output in zip(order, found, strict=True):
            outputs[place] = output.outputs[0]
        return outputs

    def describe(self) -> dict[str, Any]:
        """Model, settings, device and number type."""
        known = {"model": f"{self.name}@{fingerprint(self.name)}", "vllm": self.settings, "device": self.device, "dtype": self.dtype}
        return {**known, **self.truncation.describe(), **self.room.describe()}

    def warnings(self) -> list[str]:
        """What was cut, what was said otherwise, and what reasoning took."""
        return [*self.truncation.warnings(self.spec), *self.prompting.warnings(), *self.room.warnings(self.spec)]


def _stops(prompt: Prompt, sampling: Sampling) -> list[str]:
    return [stop for stop in dict.fromkeys((*sampling.stop, *prompt.stop)) if stop]


def settings_of(model: str) -> tuple[str, dict[str, Any]]:
    """Name and settings of `MODEL?NAME=VALUE&…`.

    Raises:
        UsageError: it has another form, or a setting is given by a flag.
    """
    name, _, query = model.partition("?")
    settings: dict[str, Any] = {}
    for part in query.split("&") if query else ():
        key, mark, value = part.partition("=")
        if not (mark and key.isidentifier()):
            raise UsageError(f"-m vllm:{model}: expected vllm:MODEL?NAME=VALUE&NAME=VALUE, got {part!r}")
        if key in FLAGS:
            raise UsageError(f"-m vllm:{name}: {key} is {FLAGS[key]}")
        try:
            settings[key] = json.loads(value)
        except (ValueError, RecursionError):
            settings[key] = value
    return name, settings
