"""The OpenAI batch-file format, for hosted batch endpoints and `vllm run-batch`: requests out, answers in."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson

from blendkit.errors import DataError, NoInputError, OutputError, RecordError
from blendkit.generators.base import Completion, Unanswered
from blendkit.generators.options import EndpointOptions
from blendkit.generators.replies import BadReply, SaidError, what_it_says
from blendkit.generators.requests import digest
from blendkit.streams.lines import BOM
from blendkit.terminal_text import count_of

NOTHING = msgspec.Raw(b"null")
# Of a fault's text, no more than this is kept.
FAULT_BYTES = 4096


class Batch:
    """An endpoint's `--read-batch` and `--emit-batch`: answers that are there, and the requests that go into the next batch.

    With `--emit-batch` alone, every request does; with both, those that have no answer, or one that cannot be used.
    """

    def __init__(self, options: EndpointOptions, route: str, quoted: Callable[[str], str]) -> None:
        """`quoted` cuts what others said, and takes secrets out.

        Raises:
            OutputError, NoInputError, DataError: a file cannot be used.
        """
        self._answers = BatchAnswers(options.batches, options.max_body_bytes) if options.batches else None
        self._writer = BatchWriter.shared(options.emit_batch, route) if options.emit_batch else None
        self._quoted = quoted
        self.requests = 0

    def find(self, body: dict[str, Any]) -> bytes | Errored | None:
        """What the batch says to a request: a response's body, an error, or nothing."""
        return self._answers.get(digest(body)) if self._answers is not None else None

    def answer(self, body: dict[str, Any], read: Callable[[bytes], Completion]) -> Completion | Exception:
        """The answer to a request, or the fault that stands for it; `read` makes a completion of a response's body."""
        key = digest(body)
        if self._answers is None:
            self._next(key, body)
            return Completion("", None, None)
        found = self._answers.get(key)
        if found is None:
            problem = f"{self._answers.name} has no answer to it; was the batch made with the same records and flags?"
        elif isinstance(found, Errored):
            problem = f"the batch has an error for it: {self._quoted(what_it_says(found.data))}"
        else:
            try:
                return read(found)
            except BadReply as error:
                problem = f"the batch {error}"
            except SaidError as error:
                problem = f"the batch has an error for it: {self._quoted(str(error))}"
        if self._writer is None:
            return Unanswered("", problem) if found is None else RecordError("", problem)
        self._next(key, body)
        return Unanswered("", f"{problem}; the request is in {self._writer.path}")

    def _next(self, key: str, body: dict[str, Any]) -> None:
        assert self._writer is not None
        self.requests += self._writer.add(key, body)

    def close(self) -> None:
        """The run is over: a later one writes its file anew."""
        if self._writer is not None:
            self._writer.release()

    def warnings(self) -> list[str]:
        """What to do next, or nothing."""
        if self._writer is None:
            return []
        written = f"{count_of(self.requests, 'request is', 'requests are')} in {self._writer.path}"
        if self._answers is None:
            what = f"{written}; give the batch's output to --read-batch, with the same records and flags"
        elif not self.requests:
            return ["the batch has answers to all requests"]
        else:
            what = f"{written}, the next batch; give its output to --read-batch beside the earlier ones"
        models = self._writer.models
        return [f"{what}; it asks {count_of(len(models), 'model')}, and hosted batches take one a file" if len(models) > 1 else what]


class BatchWriter:
    """One line a distinct request; `custom_id` is the hash of its body, by which `BatchAnswers` finds the answer."""

    def __init__(self, path: str, route: str) -> None:
        self.path, self.route = path, route
        self.models: set[str] = set()
        self._seen: set[str] = set()
        try:
            self._file = open(path, "wb")  # noqa: SIM115
        except OSError as error:
            raise OutputError(f"--emit-batch {path}: {error.strerror}") from error

    @classmethod
    def shared(cls, path: str, route: str) -> BatchWriter:
        """The writer of this file that is open, or a new one."""
        place = os.path.realpath(path)
        with _opening:
            found = _open.get(place)
            if found is None:
                found = _open[place] = cls(path, route)
            return found

    def release(self) -> None:
        """The next one who asks for this file gets a new writer, which begins it anew."""
        with _opening:
            _open.pop(os.path.realpath(self.path), None)

    def add(self, key: str, body: dict[str, Any]) -> bool:
        """Writes a request, unless it is there already; says whether it wrote."""
        if key in self._seen:
            return False
        self._seen.add(key)
        self.models.add(str(body.get("model")))
        line = {"custom_id": key, "method": "POST", "url": f"/v1/{self.route}", "body": body}
        try:
            self._file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
            self._file.flush()
        except OSError as error:
            raise OutputError(f"--emit-batch {self.path}: {error.strerror}") from error
        return True


# Several models of one run write into one file.
_open: weakref.WeakValueDictionary[str, BatchWriter] = weakref.WeakValueDictionary()
_opening = threading.Lock()


@dataclass(frozen=True, slots=True)
class Errored:
    """An answer that is none: the HTTP status (0 where the batch itself failed, such as by its deadline) and what was said."""

    status: int
    data: bytes


class _Response(msgspec.Struct):
    body: msgspec.Raw = NOTHING
    status_code: int = 200


class _Line(msgspec.Struct):
    custom_id: str
    response: _Response | None = None
    error: msgspec.Raw = NOTHING


class BatchAnswers:
    """The answers of batches, by `custom_id`: a response's body in bytes, or the error in place of one."""

    def __init__(self, paths: Sequence[str], max_body_bytes: int) -> None:
        """Raises NoInputError for a file that is not there, DataError for lines of another form or longer than `max_body_bytes`."""
        self.name = ", ".join(paths)
        self._answers: dict[str, bytes | Errored] = {}
        for path in paths:
            try:
                with open(path, "rb") as file:
                    number = 0
                    while line := file.readline(max_body_bytes + 1):
                        number += 1
                        if len(line) > max_body_bytes:
                            raise DataError(f"{path}:{number}: a line of more than {count_of(max_body_bytes, 'byte')}; --max-body-bytes raises the limit")
                        if number == 1:
                            line = line.removeprefix(BOM)
                        if line.strip():
                            self._take(f"{path}:{number}", line)
            except OSError as error:
                raise NoInputError(f"--read-batch {path}: {error.strerror}") from error

    def _take(self, place: str, line: bytes) -> None:
        try:
            row = msgspec.json.decode(line, type=_Line)
        except (ValueError, RecursionError):
            raise DataError(f"{place}: expected a line of a batch's output: custom_id, response, error") from None
        fault = bytes(row.error) if bytes(row.error) not in (b"null", b"{}", b'""', b"false") else b""
        if not fault and row.response is not None and row.response.status_code == 200:
            self._answers[row.custom_id] = bytes(row.response.body)
            return
        status = row.response.status_code if row.response else 0
        said = bytes(row.response.body) if row.response and status != 200 else fault or b"no response"
        # An answer of another batch stands above an error of this one, wherever it is read.
        if not isinstance(self._answers.get(row.custom_id), bytes):
            self._answers[row.custom_id] = Errored(status, said[:FAULT_BYTES])

    def get(self, key: str) -> bytes | Errored | None:
        """The answer's body, the error in place of it, or None where there is neither."""
        return self._answers.get(key)
