"""A command line that starts vLLM's server, in parts: what stands around it in a shell or a container is taken off."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field

from sim.errors import InputError

CONTAINERS = frozenset({"docker", "podman", "nerdctl"})
IMAGE = re.compile(r"(\S*/)?vllm-openai(-\w+)?(:[\w.-]+)?(@\S+)?")
SERVER = re.compile(r"\bvllm serve\b|\bvllm\.entrypoints\.")
SEPARATORS = frozenset({"&&", "||", "|", "&", ";"})
REDIRECTION = re.compile(r"(\d|&)?(>{1,2}|<)(&?\S*)")
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
BEFORE_COMMANDS = frozenset({"env", "export", "exec", "sudo", "nohup", "time"})


@dataclass(slots=True)
class ServerCommand:
    """A command line in parts."""

    words: list[str]
    """After ``vllm serve``, the module's name or the image's."""
    environment: dict[str, str] = field(default_factory=dict)
    image: str | None = None
    """Of a container."""


def read_server_command(text: str) -> ServerCommand:
    """Part ``vllm serve ...``, ``python -m vllm.entrypoints.openai.api_server ...``, ``docker run ... vllm/vllm-openai
    ...``, or a shell's line with one of them in it.

    Raises InputError where there is none.
    """
    try:
        words = shlex.split(re.sub(r"\\\r?\n", " ", text), comments=True)
    except ValueError as error:
        raise InputError(
            f"import-args: not a command line: {str(error).lower()}; put it in quotes as a whole"
        ) from None
    for word in words:
        if " " in word and SERVER.search(word):  # bash -c 'vllm serve ...'
            return read_server_command(word)
    environment: dict[str, str] = {}
    for part in _commands(words):
        found = _server(part, environment)
        if found is not None:
            return found
    raise InputError(
        "import-args: no `vllm serve` in it, no `-m vllm.entrypoints.openai.api_server`, and no image `vllm-openai` "
        "after `docker run`; give the command that starts the server, in quotes"
    )


def _commands(words: list[str]) -> list[list[str]]:
    """The commands of a line, without where their output goes."""
    commands: list[list[str]] = [[]]
    is_target = False
    for word in words:
        redirection = REDIRECTION.fullmatch(word)
        if word in SEPARATORS:
            commands.append([])
        elif redirection is None and not is_target:
            commands[-1].append(word)
        is_target = redirection is not None and not redirection[3]
    return commands


def _server(words: list[str], environment: dict[str, str]) -> ServerCommand | None:
    """The server that these words start, if they do; adds variables that they set to ``environment``."""
    words = list(words)
    while words and (words[0] in BEFORE_COMMANDS or ASSIGNMENT.match(words[0])):
        name, equals, value = words.pop(0).partition("=")
        if equals:
            environment[name] = value
    place = _image_place(words)
    image = None if place is None else words[place]
    if place is not None:
        environment.update(_container_environment(words[:place]))
    for position, word in enumerate(words):
        is_serve = word == "serve" and position > 0 and words[position - 1].rpartition("/")[2] == "vllm"
        if is_serve or word.startswith("vllm.entrypoints."):
            return ServerCommand(_after_serve(words[position + 1 :]), environment, image)
    if place is None:
        return None
    return ServerCommand(_after_serve(words[place + 1 :]), environment, image)  # the image's own entry point


def _after_serve(words: list[str]) -> list[str]:
    return words[1:] if words[:1] == ["serve"] else words


def _image_place(words: list[str]) -> int | None:
    """Where the image of vLLM's server stands in ``docker run ...``; None where there is none."""
    begins = [position for position, word in enumerate(words) if word.rpartition("/")[2] in CONTAINERS]
    if not begins or "run" not in words[begins[0] :]:
        return None
    return next((at for at in range(begins[0], len(words)) if IMAGE.fullmatch(words[at])), None)


def _container_environment(words: list[str]) -> dict[str, str]:
    """Variables that a container is given: ``-e NAME=VALUE``, ``--env=NAME=VALUE``."""
    found: dict[str, str] = {}
    for position, word in enumerate(words):
        text = word.removeprefix("--env=")
        if word in ("-e", "--env") and position + 1 < len(words):
            text = words[position + 1]
        elif text == word:
            continue
        name, equals, value = text.partition("=")
        if equals:
            found[name] = value
    return found
