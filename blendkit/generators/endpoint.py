"""Chat completions of any OpenAI-compatible server: bounded concurrency, retries with backoff by the openai client."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from blendkit.errors import BlendkitError, EndpointError, NoInputError, RecordError, UsageError
from blendkit.generators.base import Completion, EndpointOptions, Prompt, Sampling, TextModel


class Endpoint(TextModel):
    """The key comes from OPENAI_API_KEY; with a --base-url it may be absent, as local servers ask for none.

    Raises:
        UsageError: the `api` extra is not installed.
        EndpointError: no key for the default server.
    """

    budgeted = False

    def __init__(self, model: str, options: EndpointOptions) -> None:
        try:
            import openai
        except ImportError as error:
            raise UsageError("an openai: model needs the openai client: pip install 'blendkit[api]'") from error
        self._openai = openai
        self.spec, self._model, self._options = f"openai:{model}", model, options
        self._key = os.environ.get("OPENAI_API_KEY")
        base_url = options.base_url or os.environ.get("OPENAI_BASE_URL")
        if not self._key and not base_url:
            raise EndpointError("OPENAI_API_KEY is not set; set it, or name another server with --base-url")
        self._base_url = base_url
        self._gone: BlendkitError | None = None

    def complete(self, prompts: list[Prompt], sampling: Sampling) -> list[Completion | Exception]:
        """All prompts, at most `concurrency` at a time; once the server is gone, the rest fail at once."""
        return asyncio.run(self._all(prompts, sampling))

    async def _all(self, prompts: list[Prompt], sampling: Sampling) -> list[Completion | Exception]:
        gate = asyncio.Semaphore(self._options.concurrency)
        async with self._openai.AsyncOpenAI(
            api_key=self._key or "none", base_url=self._base_url, max_retries=self._options.retries, timeout=self._options.timeout
        ) as client:
            return list(await asyncio.gather(*(self._one(client, gate, prompt, sampling) for prompt in prompts)))

    async def _one(self, client: Any, gate: asyncio.Semaphore, prompt: Prompt, sampling: Sampling) -> Completion | Exception:
        async with gate:
            if self._gone is not None:
                return self._gone
            try:
                reply = await client.chat.completions.create(**self._request(prompt, sampling))
            except self._openai.OpenAIError as error:
                problem = self._problem(error)
                if not isinstance(problem, RecordError):
                    self._gone = problem
                return problem
        if not reply.choices:
            return RecordError("", f"{self.spec} answered without a choice")
        choice, usage = reply.choices[0], reply.usage
        counts = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens} if usage else None
        return Completion(choice.message.content or "", choice.finish_reason, counts)

    def _request(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self._model,
            "messages": prompt.messages,
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_new_tokens,
            "seed": prompt.seed,
        }
        if sampling.top_p < 1:
            request["top_p"] = sampling.top_p
        if sampling.stop:
            request["stop"] = list(sampling.stop)
        return request

    def _problem(self, error: Exception) -> BlendkitError:
        """The client's exception as ours. Its text may quote the key, so only the kind and the status are used."""
        where = self._base_url or "api.openai.com"
        if isinstance(error, self._openai.APIStatusError):
            status = error.status_code
            if status in (401, 403):
                return EndpointError(f"{where} refuses the key (HTTP {status}); check OPENAI_API_KEY")
            if status == 404:
                return NoInputError(f"{where} has no model {self._model!r} (HTTP 404)")
            if status in (400, 413, 422):
                return RecordError("", f"{self.spec} refuses this prompt (HTTP {status}): {self._scrub(error.message)}")
            return EndpointError(f"{where} answers HTTP {status}, after {self._options.retries} retries")
        if isinstance(error, self._openai.APITimeoutError):
            return EndpointError(f"{where} gave no answer in {self._options.timeout:g} s, after {self._options.retries} retries")
        return EndpointError(
            f"{where} cannot be reached ({type(error.__cause__ or error).__name__}), after {self._options.retries} retries; is the server running?"
        )

    def _scrub(self, message: str) -> str:
        return message.replace(self._key, "***") if self._key else message

    def describe(self) -> dict[str, Any]:
        """The model and where it is, without credentials."""
        from blendkit.running import hide_keys

        return {"model": self.spec, "base_url": hide_keys(self._base_url or "https://api.openai.com/v1")}
