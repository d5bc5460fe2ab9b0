"""How a prompt becomes token ids: by the chat template or a format, cut to what the model can read, with its reasoning open or closed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from typing import Any, TypeVar

from blendkit.errors import BlendkitError, NoInputError, RecordError
from blendkit.generators.base import Prompt
from blendkit.generators.reasoning import TAGS
from blendkit.models.conversations import Conversations
from blendkit.models.cuts import check_on_truncate
from blendkit.models.pretrained import reason
from blendkit.models.text_tokenizer import TextTokenizer
from blendkit.terminal_text import count_of

# Where configs say how many positions a model has, the prompt's first where an encoder has its own.
POSITIONS = ("max_encoder_position_embeddings", "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
# Distances between tokens in place of positions, so that any length can be read.
RELATIVE = ("relative_attention_num_buckets", "relative_attention_max_distance")
Item = TypeVar("Item")
Code = TypeVar("Code")
Answer = TypeVar("Answer")


@dataclass
class PromptTruncation:
    """Counts of prompts, of those that were too long, and of the tokens that were cut off."""

    prompts: int = 0
    prompts_cut: int = 0
    prompt_tokens_cut: int = 0

    def add(self, tokens_cut: Iterable[int]) -> None:
        """Counts prompts, each with the tokens that were cut off it."""
        for tokens in tokens_cut:
            self.prompts += 1
            self.prompts_cut += bool(tokens)
            self.prompt_tokens_cut += tokens

    def warnings(self, name: str) -> list[str]:
        """One line for a person, or none when nothing was cut."""
        if not self.prompts_cut:
            return []
        cut = f"{self.prompts_cut:,} of {count_of(self.prompts, 'prompt')} ({count_of(self.prompt_tokens_cut, 'token')})"
        return [f"cut to the length of {name}: {cut}; --on-truncate fail stops instead"]

    def describe(self) -> dict[str, Any]:
        """For the manifest."""
        return {"truncation": asdict(self)}


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model reads it.

    `room` are the tokens that may follow, `cut` those that were cut off it; `opened` says that it has opened the reasoning.
    """

    text: str
    ids: list[int] = field(repr=False)
    room: int
    cut: int
    opened: bool


class Prompting:
    """Makes ids of prompts for one tokenizer. `positions` are the tokens that prompt and answer have together, None where any number is read.

    `shared` is False for a model whose answer has positions of its own, as a sequence-to-sequence model's.
    """

    def __init__(self, tokenizer: Any, name: str, positions: int | None = None, on_truncate: str = "warn", shared: bool = True) -> None:
        check_on_truncate(on_truncate)
        self.name, self.positions, self.on_truncate, self.shared = name, positions, on_truncate, shared
        try:
            self.texts = TextTokenizer(tokenizer)
        except BlendkitError:
            raise
        except BaseException as error:
            raise _typed(error, NoInputError(f"the tokenizer of {name} cannot be used: {reason(error)}")) from error
        self.conversations = Conversations(self.texts)

    def length(self, prompt: Prompt) -> int:
        """Tokens of the prompt, at most those that the model reads."""
        whole = len(self._tokens(self._text(prompt), prompt))
        return whole if self.positions is None else min(whole, self.positions)

    def encoded(self, prompt: Prompt, new_tokens: int, effort: str | None = None) -> EncodedPrompt:
        """The prompt's ids, with room for an answer of `new_tokens`, or for half of what the model reads where they are more.

        Raises:
            RecordError: the prompt cannot be written, or is too long and may not be cut, or is so without its texts, too.
            NoInputError: the template is broken.
        """
        variables = _reasoning(effort)
        return self._fitted(prompt, new_tokens, variables, "\n{}\n\n" if effort == "none" else None, "")

    def settled(self, prompt: Prompt, begun: str, answers: list[str]) -> EncodedPrompt:
        """The prompt and what the model's turn begins with, all reasoning closed, with room for the longest of the answers.

        Raises:
            RecordError: as `encoded` does.
            NoInputError: the template is broken.
        """
        longest = max(answers, key=len, default="")
        tokens = len(self.texts([longest], add_special_tokens=False)["input_ids"][0]) + 2
        return self._fitted(prompt, tokens, _reasoning("none"), "\n{}\n\n", begun)

    def behind(self, prompt: Prompt, encoded: EncodedPrompt, answers: list[str]) -> tuple[list[int], list[list[int]]]:
        """Ids of what the prompt and all answers begin with, and for each answer the rest, at least one id.

        A token that spans the prompt's end belongs to the answers, and so does each answer's last token, though the answer may
        be another one's beginning.
        """
        whole = [self._tokens(encoded.text + answer, prompt) for answer in answers]
        shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*whole, encoded.ids, strict=False)))
        head = min(shared, *(len(row) - 1 for row in whole))
        return whole[0][:head], [row[head:] for row in whole]

    def warnings(self) -> list[str]:
        """What a person should know at the end."""
        return self.conversations.warnings(self.name)

    def _fitted(self, prompt: Prompt, new_tokens: int, variables: dict[str, Any], closing: str | None, begun: str) -> EncodedPrompt:
        """The prompt, cut to the budget where it is longer."""
        levels: dict[str, int] = {}
        material: dict[str, list[int]] | None = None
        whole = over = 0
        while True:
            text, opened = self._finished(prompt, self._text(prompt, levels, variables), closing)
            text += self.texts.material(begun)
            ids = self._tokens(text, prompt)
            whole = whole or len(ids)
            if self.positions is None:
                return EncodedPrompt(text, ids, new_tokens, 0, opened)
            most = self.positions if not self.shared else self.positions - min(new_tokens, self.positions // 2)
            if len(ids) <= most:
                left = self.positions - len(ids) if self.shared else self.positions - 1
                return EncodedPrompt(text, ids, min(new_tokens, left), whole - len(ids), opened)
            if self.on_truncate == "fail":
                answer = f" with {self.positions - most:,} for the answer" if self.shared else ""
                raise RecordError(
                    "",
                    f"too long for {self.name}: the prompt has {count_of(whole, 'token')}, {count_of(most, 'fits', 'fit')}{answer}; --on-truncate warn cuts it",
                )
            if material is None:
                material = {one: self._ends(one) for one in self._material(prompt, begun)}
            over += len(ids) - most
            level = _level([len(ends) for ends in material.values()], over)
            if level is None or over > 2 * whole:
                raise RecordError(
                    "", f"too long for {self.name}: the prompt's own format has more than the {count_of(most, 'token that fits', 'tokens that fit')}"
                )
            levels = {one: ends[level] for one, ends in material.items() if len(ends) > level}

    def _finished(self, prompt: Prompt, text: str, closing: str | None) -> tuple[str, bool]:
        """The text with its reasoning closed where that is asked for, and whether it leaves reasoning open."""
        if not self._templated(prompt):
            return text, False
        bare = text.rstrip()
        if closing is not None and bare.endswith("<|start|>assistant") and "<|channel|>" in self.texts.tokenizer.get_added_vocab():
            return text + "<|channel|>final<|message|>", False
        said = prompt.messages[-1]["content"].rstrip() if prompt.messages else ""
        tag = next((tag for tag in TAGS if bare.endswith(tag) and not said.endswith(tag)), None)
        if tag is None:
            return text, False
        return (text, True) if closing is None else (bare + closing.format(TAGS[tag]), False)

    def _templated(self, prompt: Prompt) -> bool:
        """Whether the chat template writes the prompt, special tokens included."""
        return prompt.format is None and self.texts.templated

    def _text(self, prompt: Prompt, levels: Mapping[str, int] | None = None, variables: Mapping[str, Any] | None = None) -> str:
        """The prompt for `_tokens`: control tokens are the template's or the format's, never a message's. `levels` are characters kept of texts."""
        levels = levels or {}

        def cut(text: str) -> str:
            return text[: levels[text]] if text in levels else text

        if prompt.format is not None:
            return prompt.text(lambda text: self.texts.material(cut(text)))
        messages = []
        for message in prompt.messages:
            content = cut(message["content"])
            for quoted in prompt.quoted:
                if quoted in levels:
                    content = content.replace(quoted, cut(quoted))
            messages.append(message | {"content": content})
        if self.texts.templated:
            return self.conversations.text(messages, **(variables or {}))
        return "\n".join(self.texts.material(message["content"]) for message in messages)

    def _material(self, prompt: Prompt, begun: str) -> list[str]:
        """The texts of a prompt that may be cut: what it quotes, or what it gives to its format, or its messages."""
        if prompt.format is not None:
            found: list[str] = []
            prompt.text(lambda text: found.append(text) or text)  # type: ignore[func-returns-value]
        else:
            contents = [message["content"] for message in prompt.messages]
            found = [quoted for quoted in prompt.quoted if quoted and any(quoted in content for content in contents)] or contents
        return [*dict.fromkeys(text for text in found if text)]

    def _ends(self, text: str) -> list[int]:
        """Where each token of a text begins, in characters; so many tokens kept are the text up to there."""
        if self.texts.tokenizer.is_fast:
            return [start for start, _ in self.texts([text], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"][0]]
        count = max(1, len(self.texts([text], add_special_tokens=False)["input_ids"][0]))
        return [len(text) * place // count for place in range(count)]

    def _tokens(self, text: str, prompt: Prompt) -> list[int]:
        try:
            return self.texts.read(text, add_special_tokens=not self._templated(prompt))
        except BlendkitError:
            raise
        except BaseException as error:
            raise _typed(error, RecordError("", f"the tokenizer of {self.name} fails at this prompt: {reason(error)}")) from error


def placed(items: Iterable[Item], encode: Callable[[Item], Code], answer: Callable[[list[Code]], Sequence[Answer]]) -> list[Answer | Exception]:
    """The answers to all items that can be encoded, asked for together, each in its item's place; a RecordError of `encode` stands in its own."""
    found: list[Code | RecordError] = []
    for item in items:
        try:
            found.append(encode(item))
        except RecordError as error:
            found.append(error)
    good = [one for one in found if not isinstance(one, RecordError)]
    answers = iter(answer(good) if good else ())
    return [one if isinstance(one, RecordError) else next(answers) for one in found]


def positions_of(config: Any) -> int | None:
    """The positions that a config states, or None where it states none or counts distances instead."""
    for part in (config, config.get_text_config()):
        if any(getattr(part, key, None) for key in RELATIVE):
            return None
        for key in POSITIONS:
            value = getattr(part, key, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 1:
                return value
    return None


def _reasoning(effort: str | None) -> dict[str, Any]:
    """What chat templates call it; a template ignores what it does not know."""
    if effort is None:
        return {}
    thinks = effort != "none"
    return {"enable_thinking": thinks, "thinking": thinks} | ({"reasoning_effort": effort} if thinks else {})


def _level(lengths: list[int], over: int) -> int | None:
    """How many tokens of each text may stay, so that `over` fall away and the longest lose first; None where even all are too few."""
    if sum(lengths) < over:
        return None
    low, high = 0, max(lengths, default=0)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(max(0, length - middle) for length in lengths) >= over:
            low = middle
        else:
            high = middle - 1
    return low


def _typed(error: BaseException, ours: BlendkitError) -> BaseException:
    """Our error for a fault of a checkpoint's; a panic in the tokenizers' Rust code is no Exception, and a signal is none of ours."""
    return ours if isinstance(error, Exception) or type(error).__name__ == "PanicException" else error
