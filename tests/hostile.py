"""An OpenAI-compatible server on the loopback interface that misbehaves on purpose. Raw sockets, so that it can cut a body in the middle."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import zlib
from collections import Counter


class HostileServer:
    """Answers `Reply to PROMPT`; `plan(prompt, attempt)` names what goes wrong with an attempt (counted from 1), or None.

    429, 429-date, 500, cut, close, not-json, html, late, empty-choices, no-message, length, 400, quota, no-schema;
    bodies without end: gzip-bomb, gzip-members, endless, endless-400, trickle, headers; `redirect:URL`; `wait:SECONDS`;
    echo (all that was asked, key and all, in a refusal). Bytes or a dict in place of a name are a body with status 200,
    a tuple (status, body) one with another, and (status, body, header lines) with these, too.
    `refuse(body)` is such a fault by what a request holds, or None. `reply(body)` gives another text, or a whole message.
    `asked` counts attempts a prompt, `answered` whole good answers. `top(body)` gives the
    first token's alternatives with log-probabilities, where the request asks for them. With `tls`, a context with a
    certificate, it speaks https.
    """

    def __init__(self, plan=lambda prompt, attempt: None, latency: float = 0.0, late: float = 60.0, reply=None, top=None, refuse=None, tls=None) -> None:
        self.refuse = refuse
        self.plan, self.latency, self.late, self.reply, self.top = plan, latency, late, reply, top
        self.tls = tls
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bodies: list[dict] = []
        self.headers: list[str] = []
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        threading.Thread(target=self._serve, args=(ready,), daemon=True).start()
        ready.wait()

    def _serve(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._talk, "127.0.0.1", 0, ssl=self.tls))
        self.url = f"http{'s' if self.tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        ready.set()
        self._loop.run_forever()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                fields = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in head.splitlines()[1:]}
                body = json.loads(await reader.readexactly(int(fields["content-length"])))
                self.bodies.append(body)
                self.headers.append(head)
                if await self._answer(body, writer, head):
                    writer.close()
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _answer(self, body: dict, writer: asyncio.StreamWriter, head: str) -> bool:
        """Writes a reply; True when the connection ends with it."""
        prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        self.asked[prompt] += 1
        fault = self.plan(prompt, self.asked[prompt]) or (self.refuse(body) if self.refuse else None)
        if self.latency:
            await asyncio.sleep(self.latency)
        good = self._completion(body, prompt)
        if isinstance(fault, bytes | dict):
            return self._write(writer, 200, fault)
        if isinstance(fault, tuple):
            return self._write(writer, *fault)
        if isinstance(fault, str) and await self._without_end(fault, writer):
            return True
        if fault == "echo":
            return self._write(writer, 400, {"error": {"message": f"bad request: {head}"}}, f"X-Echo: {head.splitlines()[0]}\r\n")
        if isinstance(fault, str) and fault.startswith("redirect:"):
            return self._write(writer, 307, {}, f"Location: {fault.partition(':')[2]}\r\n")
        if isinstance(fault, str) and fault.startswith("wait:"):
            return self._write(writer, 429, {}, f"Retry-After: {fault.partition(':')[2]}\r\n")
        if fault == "late":
            await asyncio.sleep(self.late)
        if fault in ("429", "429-date"):
            wait = "Thu, 01 Jan 1970 00:00:00 GMT" if fault == "429-date" else "0.2"
            return self._write(writer, 429, {"error": {"message": "slow down"}}, f"Retry-After: {wait}\r\n")
        if fault == "quota":
            return self._write(writer, 429, {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}})
        if fault in ("400", "500", "503", "401"):
            return self._write(writer, int(fault), {"error": {"message": f"no: {writer.get_extra_info('peername')} sk-planted-0123456789"}})
        if fault == "no-schema" and "response_format" in body:
            return self._write(writer, 400, {"error": {"message": "response_format of type json_schema is not supported"}})
        if fault == "close":
            return True
        if fault == "cut":
            data = json.dumps(good).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) + data[: len(data) // 2])
            await writer.drain()
            return True
        if fault in ("not-json", "html"):
            return self._write(writer, 200, b"<html>502 upstream</html>" if fault == "html" else b'{"choices": [')
        if fault == "empty-choices":
            good["choices"] = []
        if fault == "no-message":
            good["choices"] = [{"index": 0}]
        if fault == "length":
            good["choices"][0]["finish_reason"] = "length"
        if fault in (None, "length"):
            self.answered[prompt] += 1
        return self._write(writer, 200, good)

    async def _without_end(self, fault: str, writer: asyncio.StreamWriter) -> bool:
        """Writes a body that is far larger than it looks, or never ends; False when the fault is another one."""
        status = "400 Bad" if fault == "endless-400" else "200 OK"
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n".encode()
        if fault in ("gzip-bomb", "gzip-members"):
            data = bomb() if fault == "gzip-bomb" else gzip.compress(bytes(16 << 20)) * 200
            writer.write(head + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
            await writer.drain()
        elif fault in ("endless", "endless-400"):
            writer.write(head + b"\r\n")
            while True:
                writer.write(b" " * (1 << 16))
                await writer.drain()
        elif fault == "trickle":
            writer.write(head + b"\r\n")
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)
        elif fault == "headers":
            writer.write(head)
            while True:
                writer.write(b"X-More: of the same\r\n" * 1000)
                await writer.drain()
        else:
            return False
        return True

    def _completion(self, body: dict, prompt: str) -> dict:
        text = self.reply(body) if self.reply else f"Reply to {prompt}"
        choice: dict = {"index": 0, "finish_reason": "stop"}
        message = text if isinstance(text, dict) else {"role": "assistant", "content": text}
        choice |= {"message": message} if "messages" in body else {"text": text}
        choice |= {"finish_reason": message.pop("finish_reason", "stop")}
        if self.top and body.get("top_logprobs"):
            others = [{"token": token, "logprob": value} for token, value in self.top(body).items()]
            blank = {"token": "\n", "logprob": -0.1, "top_logprobs": []}
            choice["logprobs"] = {"content": [blank, {"token": text, "logprob": -0.5, "top_logprobs": others}]}
        elif body.get("logprobs") is True:
            choice["logprobs"] = {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.5}]}
        elif body.get("logprobs") == 0:
            choice["logprobs"] = {"token_logprobs": [None, -1.0, -3.0]}
        return {"id": "x", "object": "chat.completion", "choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}}

    @staticmethod
    def _write(writer: asyncio.StreamWriter, status: int, body: dict | bytes, more: str = "") -> bool:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{more}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        return False


def bomb(size: int = 512 << 20) -> bytes:
    """So many zeros in one gzip stream, a thousand times smaller."""
    packing = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    zeros = bytes(1 << 20)
    return b"".join([packing.compress(zeros) for _ in range(size >> 20)] + [packing.flush()])


def asking(server: HostileServer, *flags: object) -> list[object]:
    """The command that asks it once for each record."""
    return ["generate", "-m", "openai:x", "--base-url", server.url, "--retries", 0, *flags]


def prompts(*words: str) -> str:
    """A record for each word, as JSON lines."""
    return "".join(json.dumps({"id": str(number), "instruction": word}) + "\n" for number, word in enumerate(words))
