"""What the kind `http` keeps of an answer."""

from __future__ import annotations

import codecs
import re
import zlib
from typing import Any

import msgspec

from tasksvc.handlers.results import Encoded, ResultRefused, encode

_CHARSET = re.compile(r"""charset\s*=\s*["']?([\w.:-]{1,40})""", re.IGNORECASE)
_USUAL_CHARSET = re.compile(
    r"utf-?(?:8|16|32)|iso-?8859|latin|windows-|cp\d|(?:us-)?ascii|gb|big5|shift.?jis|euc|koi8",
    re.IGNORECASE,
)
_NOTE_BYTES = 200
_WIRE_FACTOR = 4
"""Compressed data that says little is read no further than this."""


class Body:
    """The bytes of a body, decompressed, up to a bound."""

    def __init__(self, encoding: str, max_bytes: int) -> None:
        self.data = bytearray()
        self.trouble: str | None = None
        self._max_bytes = max_bytes
        self._wire_bytes = 0
        self._encoding = encoding.strip().lower()
        self._decompressor: Any = None
        self._members = 0
        self._is_done = False
        if self._encoding in ("gzip", "x-gzip"):
            self._decompressor = zlib.decompressobj(zlib.MAX_WBITS | 16)
        elif self._encoding == "deflate":
            self._decompressor = zlib.decompressobj()
        elif self._encoding not in ("", "identity"):
            self.trouble = "Its content encoding is unknown."

    @property
    def is_full(self) -> bool:
        """Whether nothing more is kept."""
        return self.trouble is not None

    def feed(self, data: bytes) -> None:
        self._wire_bytes += len(data)
        room = self._max_bytes + 1 - len(self.data)
        try:
            self.data += data[:room] if self._decompressor is None else self._inflated(data, room)
        except zlib.error:
            self.trouble = "It can't be decompressed."
        if len(self.data) > self._max_bytes or self._wire_bytes > self._max_bytes * _WIRE_FACTOR:
            del self.data[self._max_bytes :]
            self.trouble = f"It has more than {self._max_bytes} bytes."

    def end(self) -> None:
        if self._decompressor is not None and self._wire_bytes and not self._members:
            self.trouble = self.trouble or "It can't be decompressed."

    def _inflated(self, data: bytes, room: int) -> bytes:
        inflated = b""
        while data and len(inflated) < room and not self._is_done:
            try:
                inflated += self._decompressor.decompress(data, room - len(inflated))
            except zlib.error:
                if self._members:  # what follows is no other member, and no one's
                    self._is_done = True
                    break
                if self._encoding != "deflate" or self.data or inflated:
                    raise
                # Some servers leave out the envelope of zlib.
                self._encoding = "raw"
                self._decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
                continue
            data = self._decompressor.unconsumed_tail
            if self._decompressor.eof:
                data = self._decompressor.unused_data
                self._members += 1
                self._is_done = self._encoding in ("deflate", "raw")
                if not self._is_done:
                    self._decompressor = zlib.decompressobj(zlib.MAX_WBITS | 16)
        return inflated


class Answer:
    """An answer of 2xx. The task is completed, whatever else is to be said of it."""

    def __init__(self, status: int, content_type: str, body: Body, max_bytes: int) -> None:
        self.body = body
        self._status = status
        self._type, _, parameters = content_type.partition(";")
        self._charset = _charset(parameters)
        self._max_bytes = max_bytes
        self._note: str | None = None

    def note(self, text: str) -> None:
        self._note = text

    def result(self) -> Any:
        """Its JSON as it was written, its text, None for an empty one; or, where that can't be
        kept, an object of its status, a note, and how its text begins."""
        note = self._note or self.body.trouble
        text = self._text()
        if note is None:
            if not self.body.data:
                return None
            try:
                if self._is_json() and (encoded := self._json(text)) is not None:
                    return Encoded(encoded)
                return Encoded(encode(text, self._max_bytes))
            except ResultRefused as error:
                note = str(error)
        kept = text[: max(0, self._max_bytes - _NOTE_BYTES)]
        while True:
            try:
                shown = {"status": self._status, "note": note, "text": kept}
                return Encoded(encode(shown, self._max_bytes))
            except ResultRefused:
                if not kept:
                    return None
                kept = kept[: len(kept) // 2]

    def _is_json(self) -> bool:
        kind = self._type.strip().lower()
        return kind in ("application/json", "text/json") or kind.endswith("+json")

    def _json(self, text: str) -> str | None:
        """The text, if it is JSON. Raises ResultRefused when it can't be kept."""
        data = text.encode()
        try:
            msgspec.json.decode(data, type=msgspec.Raw)
        except msgspec.DecodeError:
            return None  # it only says so: then it is text
        except RecursionError:
            raise ResultRefused("It is nested too deep.") from None
        return encode(msgspec.Raw(data.strip()), self._max_bytes)

    def _text(self) -> str:
        return self.body.data.decode(self._charset, "replace").removeprefix("\ufeff")


def _charset(parameters: str) -> str:
    """The one that it names, if it is a usual one; UTF-8 otherwise."""
    found = _CHARSET.search(parameters)
    if found is None or _USUAL_CHARSET.match(found[1]) is None:
        return "utf-8"
    try:
        return codecs.lookup(found[1]).name
    except LookupError:
        return "utf-8"
