"""The OpenAI batch-file format, for hosted batch endpoints and `vllm run-batch`: requests out, answers in."""

from __future__ import annotations

from typing import Any

import orjson

from blendkit.errors import DataError, NoInputError, OutputError


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


class BatchAnswers:
    """The answers of a batch, by `custom_id`: a response's body, or the reason why there is none."""

    def __init__(self, path: str) -> None:
        """Raises NoInputError for a file that is not there, DataError for lines of another form."""
        self.path = path
        self._answers: dict[str, Any] = {}
        try:
            with open(path, "rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        self._take(number, line)
        except OSError as error:
            raise NoInputError(f"--read-batch {path}: {error.strerror}") from error

    def _take(self, number: int, line: bytes) -> None:
        try:
            row = orjson.loads(line)
            response, fault = row.get("response"), row.get("error")
            key = row["custom_id"]
            if fault or response is None or response.get("status_code", 200) != 200:
                self._answers[key] = f"the batch has an error for it: {fault or (response or {}).get('body')}"[:300]
            else:
                self._answers[key] = response["body"]
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise DataError(f"{self.path}:{number}: expected a line of a batch's output: custom_id, response, error") from None

    def get(self, key: str) -> Any:
        """The answer's body (a dict), or a string that says why there is none."""
        return self._answers.get(key, f"{self.path} has no answer to it; was the batch made with the same records and flags?")
