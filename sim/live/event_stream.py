"""Server-sent events, as OpenAI-compatible servers stream their answers."""

from __future__ import annotations

MAX_EVENT_BYTES = 16 << 20
"""A longer event is no answer of a language model."""


class MalformedStream(Exception):
    """What came is not an event stream of an OpenAI-compatible server."""


class EventStream:
    """Bytes in, the data of complete events out. Comments (keep-alive lines) and other fields are dropped."""

    def __init__(self) -> None:
        self._buffer = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[str]:
        """The data of every event that ``chunk`` completes. Raises MalformedStream."""
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        if len(self._buffer) + sum(map(len, self._data)) > MAX_EVENT_BYTES:
            raise MalformedStream(f"an event of more than {MAX_EVENT_BYTES >> 20} MiB")
        events = []
        for line in lines:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].lstrip(b" "))
            elif not line and self._data:
                events.append(self._event())
        return events

    def finish(self) -> list[str]:
        """The data of an event that the end of the stream cut before its empty line."""
        return self.feed(b"\n\n")

    def _event(self) -> str:
        data, self._data = b"\n".join(self._data), []
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise MalformedStream(f"not UTF-8: {data[:60]!r}") from None
