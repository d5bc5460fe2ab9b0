"""vLLM's interface as far as blendkit uses it, over transformers on the CPU, with its refusals word for word (version 0.32).

It is as noisy as vLLM: on sys.stdout, on descriptor 1, and from a process that it starts. STAND_IN_LOG names a file that gets
a JSON line for each engine, each of its calls and its end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field

import torch

__version__ = "0.32.0"
ENGINE_ARGUMENTS = {"model", "tokenizer", "dtype", "trust_remote_code", "enable_prefix_caching", "logprobs_mode", "use_tqdm_on_load"} | {
    "enable_chunked_prefill", "gpu_memory_utilization", "max_model_len", "enforce_eager", "tensor_parallel_size"
}  # fmt: skip


def _log(**what):
    if path := os.environ.get("STAND_IN_LOG"):
        with open(path, "a") as file:
            file.write(json.dumps(what) + "\n")


def _noise():
    print("INFO 11-25 17:07:27 [model.py:733] Resolved architecture: LlamaForCausalLM")
    os.write(1, b"INFO 11-25 17:07:28 [core.py:133] Initializing a V1 LLM engine\n")
    subprocess.run([sys.executable, "-S", "-c", "print('(Worker pid=1) INFO ready')"], check=True)


@dataclass
class SamplingParams:
    max_tokens: int | None = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    logprobs: int | None = None
    allowed_token_ids: list[int] | None = None
    skip_special_tokens: bool = True

    def __post_init__(self):
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}.")


@dataclass
class Logprob:
    logprob: float


@dataclass
class CompletionOutput:
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]


@dataclass
class _ModelConfig:
    max_model_len: int
    dtype: torch.dtype


class _EngineCore:
    def shutdown(self):
        _log(ended=True)


class _Engine:
    def __init__(self, model_config):
        self.model_config, self.engine_core = model_config, _EngineCore()


class LLM:
    def __init__(self, model, **arguments):
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        _noise()
        _log(started=arguments)
        for name in arguments.keys() - ENGINE_ARGUMENTS:
            raise TypeError(f"EngineArgs.__init__() got an unexpected keyword argument '{name}'")
        if os.environ.get("STAND_IN_BROKEN"):
            raise RuntimeError("Engine core initialization failed.")
        config = AutoConfig.from_pretrained(model)
        if config.is_encoder_decoder:
            raise ValueError(
                f"1 validation error for ModelConfig\n  Value error, Model architectures {config.architectures} are not supported for now. "
                "Supported architectures: dict_keys(['LlamaForCausalLM'])"
            )
        if not isinstance(part := arguments.get("gpu_memory_utilization", 0.9), float):
            raise ValueError(
                "1 validation error for CacheConfig\ngpu_memory_utilization\n  Input should be a valid number, unable to parse string as a number "
                f"[type=float_parsing, input_value={part!r}, input_type=str]"
            )
        if part < 0.01:
            raise ValueError(
                "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine. "
                "See https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more details."
            )
        longest = arguments.get("max_model_len") or config.max_position_embeddings
        if longest > config.max_position_embeddings:
            raise ValueError(
                f"1 validation error for ModelConfig\n  Value error, User-specified max_model_len ({longest}) is greater than the derived max_model_len "
                f"(max_position_embeddings={config.max_position_embeddings}.0 or model_max_length=None in model's config.json)."
            )
        self.tokenizer = AutoTokenizer.from_pretrained(arguments["tokenizer"])
        self.network = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, arguments["dtype"]))
        self.ends = {config.eos_token_id}
        self.llm_engine = _Engine(_ModelConfig(longest, self.network.dtype))

    def generate(self, prompts, sampling_params, use_tqdm=True):
        print("INFO 11-25 17:07:29 [loggers.py:1] Engine 000")
        _log(prompts=[prompt["prompt_token_ids"] for prompt in prompts], parameters=[vars(params) for params in sampling_params], tqdm=use_tqdm)
        if os.environ.get("STAND_IN_DIES"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return [self._one(prompt["prompt_token_ids"], params) for prompt, params in zip(prompts, sampling_params, strict=True)]

    @torch.inference_mode()
    def _one(self, ids, params):
        longest = self.llm_engine.model_config.max_model_len
        if len(ids) >= longest:
            raise ValueError(f"This model's maximum context length is {longest} tokens. However, your prompt contains {len(ids)} input tokens.")
        generator = torch.Generator().manual_seed(params.seed or 0)
        written, logprobs, text, reason = [], [], "", "length"
        while len(written) < min(params.max_tokens, longest - len(ids)):
            raw = self.network(torch.tensor([ids + written])).logits[0, -1].float().log_softmax(-1)
            token = self._chosen(raw, params, generator)
            written.append(token)
            logprobs.append({token: Logprob(float(raw[token]))})
            if token in self.ends | {*params.stop_token_ids}:
                reason = "stop"
                break
            text = self.tokenizer.decode(written, skip_special_tokens=params.skip_special_tokens)
            if stop := next((stop for stop in params.stop if stop in text), None):
                text, reason = text.split(stop)[0], "stop"
                break
        given = None if params.logprobs is None else logprobs
        total = None if given is None else sum(next(iter(one.values())).logprob for one in given)
        return RequestOutput(ids, [CompletionOutput(text, written, total, given, reason)])

    @staticmethod
    def _chosen(raw, params, generator):
        if params.allowed_token_ids is not None:
            mask = torch.full_like(raw, -torch.inf)
            mask[params.allowed_token_ids] = 0
            raw = raw + mask
        if params.temperature == 0:
            return int(raw.argmax())
        return int(torch.multinomial((raw / params.temperature).softmax(-1), 1, generator=generator))
