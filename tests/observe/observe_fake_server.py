"""A small OpenAI-compatible server in a thread, with faults on order."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "tiny"

Fault = Callable[["Handler", dict[str, Any]], None]


@dataclass
class Plan:
    """How the server is to behave, and what it saw."""

    models: list[str] = field(default_factory=lambda: [MODEL])
    model_list: Any = None
    """What to answer in place of them."""
    step_s: float = 0.002
    """Between two tokens."""
    faults: dict[int, Fault] = field(default_factory=dict)
    """What happens to the request with this number (in the order of their arrival, from 0) instead of an answer."""
    usage: bool = True
    bundle: int = 1
    """Tokens per event."""
    dead: bool = False
    """Reset every connection instead of writing to it."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    plan: Plan

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        """Models and version."""
        if self.path == "/v1/models" and self.plan.model_list is not None:
            self.answer(200, self.plan.model_list)
        elif self.path == "/v1/models" and self.plan.models:
            self.answer(200, {"data": [{"id": name} for name in self.plan.models]})
        elif self.path == "/version":
            self.answer(200, {"version": "0.32.0"})
        else:
            self.answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        """A completion."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.plan.lock:
            number = len(self.plan.bodies)
            self.plan.bodies.append(body)
            self.plan.headers.append(dict(self.headers))
        if self.plan.dead:
            self.reset()
            return
        fault = self.plan.faults.get(number)
        if fault is not None:
            fault(self, body)
            return
        self.begin_stream()
        self.tokens(body, int(body.get("max_tokens") or body["max_completion_tokens"]))
        self.end_stream(body)

    def answer(self, status: int, document: Any, kind: str = "application/json") -> None:
        """A whole answer at once."""
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def begin_stream(self) -> None:
        """Status and headers."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, content: bytes) -> None:
        """One piece of the stream."""
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
        self.wfile.flush()

    def event(self, document: Any) -> None:
        """One event."""
        self.chunk(f"data: {json.dumps(document)}\n\n".encode())

    def tokens(self, body: dict[str, Any], count: int) -> None:
        """``count`` tokens, the last with a finish reason."""
        chat = "messages" in body
        if chat:
            self.event({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
        for first in range(0, count, self.plan.bundle):
            time.sleep(self.plan.step_s)
            if self.plan.dead:
                self.reset()
                raise ConnectionAbortedError
            text = " word" * min(self.plan.bundle, count - first)
            reason = "length" if first + self.plan.bundle >= count else None
            part = {"delta": {"content": text}} if chat else {"text": text}
            self.event({"choices": [{"index": 0, **part, "finish_reason": reason}], "usage": None})

    def end_stream(self, body: dict[str, Any]) -> None:
        """Usage, end."""
        count = int(body.get("max_tokens") or body["max_completion_tokens"])
        prompt = body.get("prompt") or body["messages"][0]["content"]
        length = len(prompt.split()) if isinstance(prompt, str) else len(prompt)
        if self.plan.usage:
            self.event({"choices": [], "usage": {"prompt_tokens": length, "completion_tokens": count}})
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def reset(self) -> None:
        """End the connection as a process that dies does: no last chunk, and a reset instead of a close."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True


@contextlib.contextmanager
def serving(plan: Plan) -> Iterator[str]:
    """The address of a running server that behaves as ``plan`` says."""
    handler = type("PlannedHandler", (Handler,), {"plan": plan})

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            """Broken connections are what is being tested."""

    server = Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def free_url() -> str:
    """An address at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
