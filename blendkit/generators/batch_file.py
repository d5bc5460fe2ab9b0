"""The OpenAI batch-file format, for hosted batch endpoints and `vllm run-batch`: requests out, answers in."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from blendkit.errors import DataError, NoInputError, OutputError

NOTHING = msgspec.Raw(b"null")
# Of a fault's text, no more than this is kept.
FAULT_BYTES = 4096


class BatchWriter:
    """One line a distinct request; `custom_id` is the hash of its body, by which `BatchAnswers` finds the answer."""

    def __init__(self, path: str, route: str) -> None:
        self.path, self.route = path, route
        self.count = 0
        self._seen: set[str] = set()
        try:
            self._file = open(path, "wb")  # noqa: SIM115
        except OSError as error:
            raise OutputError(f"--emit-batch {path}: {error.strerror}") from error

    def add(self, key: str, body: dict[str, Any]) -> None:
        """Writes a request that is not there yet."""
        if key in self._seen:
            return
        self._seen.add(key)
        self.count += 1
        line = {"custom_id": key, "method": "POST", "url": f"/v1/{self.route}", "body": body}
        try:
            self._file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
            self._file.flush()
        except OSError as error:
            raise OutputError(f"--emit-batch {self.path}: {error.strerror}") from error


class _Response(msgspec.Struct):
    body: msgspec.Raw = NOTHING
    status_code: int = 200


class _Line(msgspec.Struct):
    custom_id: str
    response: _Response | None = None
    error: msgspec.Raw = NOTHING


class BatchAnswers:
    """The answers of a batch, by `custom_id`: a response's body in bytes, or the reason why there is none."""

    def __init__(self, path: str, max_body_bytes: int) -> None:
        """Raises NoInputError for a file that is not there, DataError for lines of another form or longer than `max_body_bytes`."""
        self.path = path
        self._answers: dict[str, bytes | str] = {}
        try:
            with open(path, "rb") as file:
                number = 0
                while line := file.readline(max_body_bytes + 1):
                    number += 1
                    if len(line) > max_body_bytes:
                        raise DataError(f"{path}:{number}: a line of more than {max_body_bytes:,} bytes; --max-body-bytes raises the limit")
                    if line.strip():
                        self._take(number, line)
        except OSError as error:
            raise NoInputError(f"--read-batch {path}: {error.strerror}") from error

    def _take(self, number: int, line: bytes) -> None:
        try:
            row = msgspec.json.decode(line, type=_Line)
        except (ValueError, RecursionError):
            raise DataError(f"{self.path}:{number}: expected a line of a batch's output: custom_id, response, error") from None
        fault = bytes(row.error) if bytes(row.error) not in (b"null", b"{}", b'""', b"false") else b""
        if fault or row.response is None or row.response.status_code != 200:
            said = fault or (bytes(row.response.body) if row.response else b"no response")
            self._answers[row.custom_id] = f"the batch has an error for it: {said[:FAULT_BYTES].decode(errors='replace')}"
        else:
            self._answers[row.custom_id] = bytes(row.response.body)

    def get(self, key: str) -> bytes | str:
        """The answer's body, or a string that says why there is none."""
        return self._answers.get(key, f"{self.path} has no answer to it; was the batch made with the same records and flags?")
