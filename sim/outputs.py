"""The command line's ways out: whether they can be written, found early, and what to say where they then cannot.

A place that cannot be written from the start is bad input; one that fails on the way is an OutputError.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from sim.errors import OutputError, Problem

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def folder_problems(out: str | None) -> list[Problem]:
    """Why ``--out`` cannot be written, found before time is spent on simulating."""
    if out is None:
        return []
    from pathlib import Path

    if not out:
        return [Problem("--out: give the name of a folder")]
    existing = Path(out)
    try:
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        if not existing.is_dir():
            return [Problem(f"--out {out}: {existing} is a file, not a folder; give another name")]
    except OSError as error:
        return [Problem(f"--out {out}: {error.strerror or error}")]
    if not os.access(existing, os.W_OK | os.X_OK):
        return [Problem(f"--out {out}: no permission to write to {existing}")]
    return []


def file_problems(name: str | None) -> list[Problem]:
    """Why ``--decisions`` cannot be written, as far as it shows beforehand."""
    if name is None:
        return []
    from pathlib import Path

    path = Path(name)
    if path.is_dir():
        return [Problem(f"--decisions {name}: a folder; give a file's name")]
    if not path.parent.is_dir():
        return [Problem(f"--decisions {name}: there is no folder {path.parent}")]
    target = path if path.exists() else path.parent
    if not os.access(target, os.W_OK):
        return [Problem(f"--decisions {name}: no permission to write to {target}")]
    return []


class _File(io.FileIO):
    """A file whose failure to take data says which one it was.

    The simulation writes to it, so an OSError that came out of there could be anything.
    """

    def __init__(self, path: str | os.PathLike[str], shown: str) -> None:
        super().__init__(path, "w")
        self._shown = shown

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OutputError(self._shown, error) from error


def _text(path: str | os.PathLike[str], shown: str) -> TextIO:
    return io.TextIOWrapper(io.BufferedWriter(_File(path, shown)), encoding="utf-8", newline="\n")


@contextmanager
def decisions_file(name: str | None) -> Iterator[TextIO | None]:
    """The stream for ``--decisions``: a file beside its place, moved there when the run has ended.

    What is no ordinary file (a pipe, /dev/stdout) is written directly.

    Raises:
        OutputError: the file does not take what is written to it.
    """
    if name is None:
        yield None
        return
    from pathlib import Path

    from sim.results.staging import lock, part_of

    path, shown = Path(name), f"--decisions {name}"
    direct = path.exists() and not path.is_file()
    staging = path if direct else part_of(path)
    try:
        stream = _text(staging, shown)
    except OSError as error:
        raise OutputError(shown, error) from error
    try:
        with stream:
            if not direct:
                lock(stream.fileno())
            yield stream
            if not direct:
                # While it is still locked: no other run may take it for a leftover.
                stream.flush()
                _move(staging, path, shown)
    finally:
        if not direct:
            staging.unlink(missing_ok=True)


def _move(staging: os.PathLike[str], path: os.PathLike[str], shown: str) -> None:
    try:
        os.replace(staging, path)
    except OSError as error:
        raise OutputError(shown, error) from error


@contextmanager
def standard_output() -> Iterator[None]:
    """Around whatever prints results. A reader that has gone (``simrun ... | head``) is left to click.

    Raises:
        OutputError: standard output is closed or does not take what is written to it.
    """
    if sys.stdout is None:
        raise OutputError("standard output", OSError("it is closed"))
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # What is still buffered would be tried, and complained about, once more when Python ends.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        raise OutputError("standard output", error) from error
