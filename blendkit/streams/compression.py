"""Compressed streams of gzip members or zstd frames. One that is cut off or altered is always noticed."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable
from typing import IO, Any, BinaryIO

# Compressed bytes read at a time: few, because gzip can expand them 1,000 times and zstd 32,000 times.
GZIP_BYTES, ZSTD_BYTES = 16 << 10, 2 << 10
# Up to this many bytes of a member are held back until its checksum is known; a window of records is mostly smaller.
HELD_BYTES = 8 << 20


class Damaged(Exception):
    """Compressed data that are `cut` off, or altered; the message says where."""

    def __init__(self, problem: str, cut: bool = False) -> None:
        super().__init__(problem)
        self.cut = cut


class Members(io.RawIOBase):
    """The data of compressed members, one after the other; an empty file has none, and is an empty stream.

    A member's data are returned when its checksum was right; a member longer than `HELD_BYTES` is returned as it comes. Of a
    member that is cut off, the data before the cut are returned.

    Raises:
        Damaged: the data end inside a member, are altered, or are not compressed. All good data were returned before.
    """

    def __init__(self, raw: BinaryIO, new: Callable[[], Any], size: int, errors: tuple[type[Exception], ...], padded: bool) -> None:
        """`new` makes a member's decompressor, which gets `size` bytes at a time; `padded` says whether zeros may stand between members."""
        self._raw, self._new, self._size, self._errors, self._padded = raw, new, size, errors, padded
        self._member: Any = None
        self._rest, self._read = b"", 0
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._ready, self._place = b"", 0
        self._fault: Damaged | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer)
        while self._place == len(self._ready):
            if self._fault is not None:
                raise self._fault
            if not self._advance():
                return 0
        part = self._ready[self._place : self._place + len(target)]
        target[: len(part)] = part
        self._place += len(part)
        return len(part)

    def _advance(self) -> bool:
        """Reads some compressed bytes; False at the end of the stream."""
        data = self._rest or self._raw.read(self._size)
        self._rest = b""
        if not data:
            if self._member is None:
                return False
            self._release()
            self._fault = Damaged(f"cut off: the compressed data end in the middle of a block, at byte {self._read:,}", cut=True)
            return True
        self._read += len(data)
        if self._member is None:
            if self._padded and self._read > len(data) and not (data := data.lstrip(b"\0")):
                return True
            self._member = self._new()
        try:
            found = self._member.decompress(data)
        except self._errors as error:
            self._held = []
            start = self._read - len(data)
            reason = " ".join(str(error).split())
            what = f"damaged near byte {start:,} of the compressed data" if start else "not compressed data, as the name says"
            self._fault = Damaged(f"{what}: {reason}")
            return True
        self._held.append(found)
        self._held_bytes += len(found)
        if self._member.eof:
            self._rest = self._member.unused_data
            self._read -= len(self._rest)
            self._member = None
        if self._member is None or self._held_bytes > HELD_BYTES:
            self._release()
        return True

    def _release(self) -> None:
        self._ready, self._place = b"".join(self._held), 0
        self._held = []
        if self._member is None:
            self._held_bytes = 0


# How the data of each kind begin, which no line of JSON does.
MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}


def recognized(raw: BinaryIO, name: str) -> IO[bytes]:
    """As `decompressed`, also where the name does not say that the data are compressed; waits for the first of them."""
    if not name.endswith((".gz", ".zst")) and isinstance(raw, (io.BufferedReader, io.BufferedRandom)):
        head = raw.peek(4)
        name += next((suffix for magic, suffix in MAGIC.items() if head.startswith(magic)), "")
    return decompressed(raw, name)


def decompressed(raw: BinaryIO, name: str) -> IO[bytes]:
    """The stream behind a name that ends in .gz or .zst, or the stream itself; reading raises Damaged."""
    if name.endswith(".gz"):
        members = Members(raw, lambda: zlib.decompressobj(zlib.MAX_WBITS | 16), GZIP_BYTES, (zlib.error,), padded=True)
    elif name.endswith(".zst"):
        import zstandard

        members = Members(raw, zstandard.ZstdDecompressor().decompressobj, ZSTD_BYTES, (zstandard.ZstdError,), padded=False)
    else:
        return raw
    return io.BufferedReader(members, 1 << 17)


def compressor(name: str) -> Callable[[bytes], bytes]:
    """The function that compresses one block of output, by the file's name; each block is a whole member with a checksum and its length."""
    if name.endswith(".gz"):
        return lambda data: gzip.compress(data, mtime=0)
    if name.endswith(".zst"):
        import zstandard

        made: Callable[[bytes], bytes] = zstandard.ZstdCompressor(write_checksum=True, write_content_size=True).compress
        return made
    return lambda data: data
