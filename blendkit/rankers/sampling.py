"""Sampling n texts an input with somebody's own model, as `llm_blender.Blender.n_generate` does."""

from __future__ import annotations

from typing import Any


def sample(model: Any, tokenizer: Any, prompts: list[str], n: int, mode: str | None, batch_size: int, settings: dict[str, Any]) -> list[list[str]]:
    """n texts for each prompt, without the prompt.

    `mode` is top_k_sampling, top_p_sampling, or None for what `settings` alone say. A `vllm.LLM` takes the place
    of a transformers model.

    Raises:
        ValueError: there is no such mode.
    """
    defaults = {"top_k_sampling": {"top_k": 50, "temperature": 0.7}, "top_p_sampling": {"top_p": 1.0, "temperature": 0.7}, None: {}}
    if mode not in defaults:
        raise ValueError(f"sampling_mode {mode!r}: expected top_k_sampling, top_p_sampling or None")
    settings = {**defaults[mode], **settings}
    if type(model).__module__.startswith("vllm"):
        return _by_vllm(model, prompts, n, settings)
    if mode is not None:
        settings["do_sample"] = True
    if "max_new_tokens" not in settings:
        settings.setdefault("max_length", tokenizer.model_max_length)
    texts: list[list[str]] = []
    for start in range(0, len(prompts), batch_size):
        batch = tokenizer(prompts[start : start + batch_size], return_tensors="pt", padding=True, truncation=True).to(model.device)
        output = model.generate(**batch, **settings, num_return_sequences=n)
        if not model.config.is_encoder_decoder:
            output = output[:, batch["input_ids"].shape[1] :]
        decoded = tokenizer.batch_decode(output, skip_special_tokens=True)
        texts += [decoded[place : place + n] for place in range(0, len(decoded), n)]
    return texts


def _by_vllm(model: Any, prompts: list[str], n: int, settings: dict[str, Any]) -> list[list[str]]:
    from vllm import SamplingParams

    length = settings.pop("max_new_tokens", None) or settings.pop("max_length", None) or settings.pop("max_tokens", None)
    outputs = model.generate(prompts, sampling_params=SamplingParams(n=n, max_tokens=length, **settings))
    return [[one.text for one in output.outputs] for output in outputs]
