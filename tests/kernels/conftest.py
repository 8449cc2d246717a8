"""Compiled kernels for the tests of this folder: each specialisation once per session, several compilers at a time."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kernels_cpu import SPECIALISATIONS, Specialisation, compile_kernels, load


@pytest.fixture(scope="session")
def kernel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="session")
def compiled(kernel_folder: Path) -> Iterator[Callable[[Specialisation], ctypes.CDLL]]:
    """The library of all kernels for a specialisation. The first call starts compiling all of them."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        pending = {each: pool.submit(compile_kernels, kernel_folder, each.defines()) for each in SPECIALISATIONS}
        yield lambda specialisation: load(pending[specialisation].result())
        for future in pending.values():
            future.cancel()
