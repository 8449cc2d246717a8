"""Writing beside the place, and moving there at the end: a file is there as a whole or as it was.

What is being written is locked by its writer. A process that is killed (SIGKILL, out of memory) leaves its part
without a lock; the next that writes to the same place removes it. Names are ``NAME.PID.part``, visible ones.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SUFFIX = ".part"


def part_of(path: Path) -> Path:
    """Name the part that becomes ``path``, and remove those that killed processes left of it."""
    remove_leftovers(path.parent, path.name)
    return path.with_name(f"{path.name}.{os.getpid()}{SUFFIX}")


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """Make a folder in ``target`` to write to, gone at the end, and remove those that killed processes left.

    Raises OSError where ``target`` takes no folder.
    """
    target.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target, "simrun-out")
    staging = Path(tempfile.mkdtemp(prefix="simrun-out.", suffix=SUFFIX, dir=target))
    handle = os.open(staging, os.O_RDONLY)
    try:
        lock(handle)
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(handle)


def lock(handle: int) -> bool:
    """Lock an open file or folder until it is closed; False = another process has it."""
    try:
        import fcntl
    except ImportError:  # not on Windows, where a file that is open cannot be removed anyway
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def remove_leftovers(folder: Path, name: str) -> None:
    """Remove the parts of ``name`` in ``folder`` that no living process writes."""
    with suppress(OSError):
        for part in sorted(folder.iterdir()):
            middle = part.name.removeprefix(f"{name}.").removesuffix(SUFFIX)
            if part.name == f"{name}.{middle}{SUFFIX}" and "." not in middle:
                _remove_if_left(part)


def _remove_if_left(part: Path) -> None:
    with suppress(OSError):
        handle = os.open(part, os.O_RDONLY)
        try:
            if not lock(handle):
                return
            if part.is_dir():
                shutil.rmtree(part)
            else:
                part.unlink()
        finally:
            os.close(handle)
