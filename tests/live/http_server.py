"""vLLM's own HTTP server in a process of its own, on the loopback, for as long as a ``with`` lasts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from real_scheduler import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 30.0
SLOW_FILE = "TEST_SLOW_FILE"
"""Environment variable for ``slow_scheduler``: steps take longer while the file that it names exists."""
IN_PROCESS_ONLY = "VLLM_ENABLE_V1_MULTIPROCESSING"
"""Set by the tests that drive an engine inside their own process; the server has its engine in another one."""


def free_port() -> int:
    """A port at which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def vllm_server(arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[str]:
    """The address of a server started with ``arguments``: what ``simrun vllm-args --module`` says after ``python``."""
    port = free_port()
    command = [sys.executable, *arguments, "--host", "127.0.0.1", "--port", str(port)]
    inherited = {name: value for name, value in {**ENVIRONMENT, **os.environ}.items() if name != IN_PROCESS_ONLY}
    inherited |= {"PYTHONPATH": str(ROOT), "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "INFO", **environment}
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, env=inherited, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, url, log)
        yield url
    finally:
        _stop(process)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}:\n{log.read_text()[-4000:]}")
        with contextlib.suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        time.sleep(0.5)
    raise RuntimeError(f"the server did not start within {START_TIMEOUT_S:g} s:\n{log.read_text()[-4000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and its engine, politely first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            continue
        break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def metrics(url: str) -> dict[str, float]:
    """The gauges and counters that the server shows under /metrics, summed over their labels."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    found: dict[str, float] = {}
    for name, value in re.findall(r"^(vllm:\w+)(?:\{[^}]*\})? ([0-9.eE+-]+)$", text, flags=re.MULTILINE):
        found[name] = found.get(name, 0.0) + float(value)
    return found


def wait_for(url: str, timeout_s: float, **expected: float) -> dict[str, float]:
    """The metrics once ``vllm:NAME`` has the value expected of it, for every name given."""
    deadline = time.monotonic() + timeout_s
    found: dict[str, float] = {}
    seen: list[list[float | None]] = []
    while time.monotonic() < deadline:
        found = metrics(url)
        values = [found.get(f"vllm:{name}") for name in expected]
        if values not in seen[-1:]:
            seen.append(values)
        if all(found.get(f"vllm:{name}") == value for name, value in expected.items()):
            return found
        time.sleep(0.05)
    raise AssertionError(f"after {timeout_s:g} s: {expected}, found one after the other {seen}")


def stream(url: str, body: Mapping[str, Any], timeout_s: float = 600.0) -> Iterator[dict[str, Any]]:
    """The events of one completion. Closing the generator closes the connection."""
    request = urllib.request.Request(
        f"{url}/v1/completions",
        data=json.dumps({"stream": True, "temperature": 0, "ignore_eos": True, **body}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        for line in answer:
            data = line.decode().strip().removeprefix("data: ")
            if data and data != "[DONE]":
                yield json.loads(data)
