"""One request to an OpenAI-compatible server: its body, its stream, and how it ended."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sim.errors import InputError
from sim.live.event_stream import EventStream, MalformedStream
from sim.live.observation_file import LARGEST_COUNT, Observation
from sim.live.prompts import PromptMaker

if TYPE_CHECKING:
    import aiohttp

Endpoint = Literal["completions", "chat"]
PATHS: dict[Endpoint, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
KEY_VARIABLE = "OPENAI_API_KEY"
CONNECT_TIMEOUT_S = 30.0
KEEPALIVE_S = 2.0
"""Shorter than servers keep idle connections (uvicorn: 5 s), so that none is used as the server closes it."""
ASKING_TIMEOUT_S = 10.0
LONGEST_REASON = 300

Clock = Callable[[], int]
"""Nanoseconds since the start of the run."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go and what they may carry."""

    url: str
    """Without a trailing slash and without ``/v1``."""
    model: str
    prompts: PromptMaker
    endpoint: Endpoint = "completions"
    timeout_s: float | None = None
    """Bound on one request from sending to end; None = none."""
    extensions: bool = True
    """Send what only vLLM knows (``ignore_eos``, ``priority``, ``vllm_xargs``, token ids)."""
    send_priority: bool = False
    headers: dict[str, str] = field(default_factory=dict)


def base_url(given: str) -> str:
    """``given`` without what every request adds itself. Raises InputError for anything but http(s)."""
    from urllib.parse import urlsplit

    text = given.strip().rstrip("/")
    try:
        parts = urlsplit(text)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        port_is_valid = False
    if not port_is_valid or parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"--url {given!r}: expected the address of a server, such as http://127.0.0.1:8000")
    if parts.query or parts.fragment:
        raise InputError(f"--url {given!r}: give the address alone, without what follows ? or #")
    return text.removesuffix("/v1").rstrip("/")


def authorization() -> dict[str, str]:
    """The header that the key in the environment makes; nothing without one. Raises InputError where it cannot."""
    key = os.environ.get(KEY_VARIABLE)
    if key and not key.isprintable():
        raise InputError(f"{KEY_VARIABLE} holds a line break or another character that no HTTP header can carry")
    return {"Authorization": f"Bearer {key}"} if key else {}


def without_password(url: str) -> str:
    """``url`` as it may be shown and kept: without the user and password that may stand in it."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def request_body(target: Target, observation: Observation) -> bytes:
    """The JSON that asks for what ``observation`` is to be."""
    body: dict[str, Any] = {"model": observation.lora or target.model}
    row, length, segments = observation.row, observation.input_tokens, observation.segments
    if target.endpoint == "chat":
        body["messages"] = [{"role": "user", "content": target.prompts.text(row, length, segments)}]
        body["max_completion_tokens"] = observation.max_tokens
    else:
        ids = target.extensions
        prompts = target.prompts
        body["prompt"] = (
            prompts.token_ids(row, length, segments).tolist() if ids else prompts.text(row, length, segments)
        )
        body["max_tokens"] = observation.max_tokens
    body |= {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    if target.extensions:
        body["ignore_eos"] = True
        if target.send_priority and observation.priority:
            body["priority"] = observation.priority
        body["vllm_xargs"] = hints(observation)
    return json.dumps(body, separators=(",", ":")).encode()


def hints(observation: Observation) -> dict[str, str | int | float]:
    """What a policy may know of a request beside its lengths, under the names that the vLLM plugin reads."""
    found: dict[str, str | int | float] = {
        "tenant": observation.tenant,
        "tier": observation.tier,
        "class_name": observation.class_name,
    }
    if observation.deadline_ns is not None:
        found["deadline_s"] = observation.deadline_ns / 1e9
    if observation.expected_output_tokens is not None:
        found["expected_output_tokens"] = observation.expected_output_tokens
    return found


class Failure(Exception):
    """A request did not complete, for the reason that the text gives."""


@dataclass(slots=True)
class _Answer:
    """What has come of one request's stream."""

    token_ns: list[int] = field(default_factory=list)
    finish_ns: int | None = None
    """When a last event without text said that it had finished."""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    done: bool = False

    def take(self, data: str, now_ns: int) -> None:
        """One event. Raises Failure for what the server reports, MalformedStream for what cannot be read."""
        if data == "[DONE]":
            self.done = True
            return
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            raise MalformedStream(f"not JSON: {data[:60]!r}") from None
        if not isinstance(event, dict):
            raise MalformedStream(f"not an object: {data[:60]!r}")
        if event.get("error") is not None or event.get("object") == "error":
            raise Failure(f"the server reported: {_message(event)}")
        if isinstance(event.get("usage"), dict):
            self.usage = event["usage"]
        choices = event.get("choices")
        if not choices:
            return
        if not isinstance(choices, list) or not isinstance(choices[0], dict):
            raise MalformedStream(f"choices is not a list of objects: {data[:60]!r}")
        self._take_choice(choices[0], now_ns)

    def _take_choice(self, choice: dict[str, Any], now_ns: int) -> None:
        finished = choice.get("finish_reason")
        if _has_text(choice, finished is not None):
            self.token_ns.append(now_ns)
        elif finished is not None:
            self.finish_ns = now_ns
        if finished is not None:
            self.finish_reason = str(finished)


def _has_text(choice: dict[str, Any], finished: bool) -> bool:
    """Whether an event carries a token. Special tokens are empty text; so are a stream's first and last event."""
    delta = choice.get("delta")
    if isinstance(delta, dict):
        parts = [delta.get(key) for key in ("content", "reasoning", "reasoning_content", "tool_calls")]
        return any(parts) or ("" in parts and not finished and "role" not in delta)
    text = choice.get("text")
    return bool(text) or (text is not None and not finished)


async def send(session: aiohttp.ClientSession, target: Target, body: bytes, seen: Observation, now: Clock) -> None:
    """Send one request and fill ``seen`` with what comes back; failures end in it, nothing is raised.

    Only a cancellation passes through, after ``seen`` has been told.
    """
    answer = _Answer(token_ns=seen.token_ns)
    seen.sent_ns = now()
    try:
        async with asyncio.timeout(target.timeout_s):
            await _stream(session, target, body, seen, answer, now)
        _close(seen, answer)
        seen.status = "completed"
    except asyncio.CancelledError:
        seen.status, seen.reason = "cancelled", "interrupted"
        raise
    except TimeoutError as error:
        # aiohttp's own (connecting takes too long) are TimeoutErrors as well.
        text = str(error)
        seen.reason = f"cannot connect: {text}" if "onnect" in text else f"timed out after {target.timeout_s:g} s"
    except Failure as error:
        seen.reason = str(error)
    except MalformedStream as error:
        seen.reason = f"malformed stream: {error}"
    except Exception as error:  # whatever a server and a network can do to a client ends in the record
        seen.reason = _why(error, answer)
    finally:
        seen.end_ns = now()
        seen.finish_reason = answer.finish_reason
        if seen.reason is not None:
            seen.reason = " ".join(seen.reason.split())[:LONGEST_REASON]


async def _stream(
    session: aiohttp.ClientSession, target: Target, body: bytes, seen: Observation, answer: _Answer, now: Clock
) -> None:
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream", **target.headers}
    url = target.url + PATHS[target.endpoint]
    async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
        seen.http_status = response.status
        if response.status != 200:
            raise Failure(f"HTTP {response.status}: {_error_text(await response.content.read(65536), response.reason)}")
        kind = response.headers.get("Content-Type", "")
        if kind and "event-stream" not in kind:
            raise Failure(f"the server does not stream: it answered with {kind}")
        events = EventStream()
        async for chunk in response.content.iter_any():
            now_ns = now()
            for data in events.feed(chunk):
                answer.take(data, now_ns)
                if answer.done:
                    return
        for data in events.finish():
            answer.take(data, now())


def _close(seen: Observation, answer: _Answer) -> None:
    """Counts and the last instant of a stream that has ended. Raises Failure where something is missing."""
    if not answer.done:
        raise Failure(f"the stream ended without [DONE], after {len(seen.token_ns)} events")
    usage = answer.usage
    if usage is None:
        raise Failure("the stream held no usage: the server does not know stream_options.include_usage")
    counts = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
    if not all(type(count) is int and 0 <= count < LARGEST_COUNT for count in counts):
        raise Failure(f"usage holds no token counts: {json.dumps(usage)[:100]}")
    num_input, num_output = (int(count) for count in counts if count is not None)
    if answer.finish_ns is not None and len(seen.token_ns) < num_output:
        seen.token_ns.append(answer.finish_ns)
    seen.input_tokens, seen.output_tokens = max(1, num_input), num_output
    if not seen.token_ns or not num_output:
        raise Failure("no token came")


def _why(error: Exception, answer: _Answer) -> str:
    import aiohttp

    events = len(answer.token_ns)
    if isinstance(error, aiohttp.ClientConnectorError):
        # A name that is not known has an errno of its own, which os.strerror does not know.
        known = (error.os_error.errno or 0) > 0
        reason = os.strerror(error.os_error.errno or 0) if known else error.os_error.strerror or str(error.os_error)
        return f"cannot connect: {reason}"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the server closed the connection before it answered"
    if isinstance(error, aiohttp.ClientPayloadError):
        return f"the connection broke off in the middle of the stream, after {events} events"
    if isinstance(error, OSError):
        reason = os.strerror(error.errno) if error.errno else str(error) or type(error).__name__
        return f"the connection failed after {events} events: {reason}"
    return f"{type(error).__name__}: {error}"


def _error_text(content: bytes, otherwise: str | None) -> str:
    text = content.decode("utf-8", "replace").strip()
    try:
        return _message(json.loads(text))
    except (ValueError, RecursionError):
        return text or otherwise or "no explanation"


def _message(answer: Any) -> str:
    """The text of an error as OpenAI's API, FastAPI and others word it."""
    found = answer
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and found.get(key):
            found = found[key]
    return found if isinstance(found, str) else json.dumps(found)


def open_session() -> aiohttp.ClientSession:
    """A session without a bound on connections. Raises InputError where the library is missing."""
    check_library()
    import aiohttp

    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
    return aiohttp.ClientSession(connector=connector, timeout=timeout)


def check_library() -> None:
    """Raise InputError saying how to get the HTTP library where it is missing."""
    try:
        import aiohttp  # noqa: F401
    except ImportError:
        raise InputError("observe needs aiohttp; install it with: pip install 'simrun-llm[live]'") from None


@dataclass(slots=True)
class Server:
    """What a server said of itself."""

    models: list[str] = field(default_factory=list)
    models_status: int | None = None
    """HTTP status of the answer to the question for them."""
    version: str | None = None
    objection: str | None = None
    """Why no request needs to be sent."""


async def ask_server(session: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> Server:
    """The models that the server serves and vLLM's version. One that answers, whatever it answers, is there."""
    server = Server()
    try:
        async with asyncio.timeout(ASKING_TIMEOUT_S):
            server.models_status, server.models = await _models(session, url, headers)
            async with session.get(f"{url}/version", headers=headers) as response:
                if response.status == 200:
                    version = (await response.json(content_type=None)).get("version")
                    server.version = version if isinstance(version, str) else None
    except TimeoutError:
        server.objection = f"no answer from {without_password(url)} within {ASKING_TIMEOUT_S:g} s"
    except (ValueError, AttributeError):
        pass
    except Exception as error:
        if not server.models:
            server.objection = f"{_why(error, _Answer())} ({without_password(url)})"
    return server


async def _models(session: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> tuple[int, list[str]]:
    async with session.get(f"{url}/v1/models", headers=headers) as response:
        if response.status != 200:
            return response.status, []
        try:
            listed = (await response.json(content_type=None)).get("data")
        except (ValueError, AttributeError):
            listed = None
        rows = listed if isinstance(listed, list) else []
        return 200, [each["id"] for each in rows if isinstance(each, dict) and isinstance(each.get("id"), str)]


def clock() -> Clock:
    """A clock that starts now."""
    start_ns = time.perf_counter_ns()
    return lambda: time.perf_counter_ns() - start_ns
