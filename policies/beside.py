"""A policy, predictor or router of one's own in a file beside the scenario: ``mine:Mine`` for ``mine.py``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

from policies.base import PolicyError

MARK = "__beside_a_scenario__"
"""Set on the modules that ``import_beside`` imported: a file of that name beside another scenario replaces them."""


def import_beside(kind: str, name: str, folder: Path) -> None:
    """Import the module of ``name`` (``module:Class``) from ``folder`` if there is a file for it; else do nothing.

    The file wins over an installed module of its name that has not been imported yet. What it imports is looked for
    in ``folder`` too.

    Raises:
        PolicyError: the file cannot be imported, or has the name of a module that is in use already.
    """
    module = name.partition(":")[0]
    if ":" not in name or not all(part.isidentifier() for part in module.split(".")):
        return
    folder = folder.resolve()
    place = folder.joinpath(*module.split("."))
    if not (place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()):
        return
    top = module.partition(".")[0]
    loaded = sys.modules.get(top)
    if loaded is not None and not _is_in(loaded, folder):
        if not hasattr(loaded, MARK):
            raise PolicyError(
                f"{kind} {name!r}: {top!r} in {folder} has the name of a module "
                "that is in use already; call it otherwise"
            )
        for each in [each for each in sys.modules if each == top or each.startswith(f"{top}.")]:
            del sys.modules[each]
    was_there = top in sys.modules  # a package that lies in this folder, and that others have imported
    _import(kind, name, module, folder)
    if not was_there:
        setattr(sys.modules[top], MARK, str(folder))


def _is_in(module: ModuleType, folder: Path) -> bool:
    """Whether ``module`` is a file or a package right in ``folder``."""
    file = getattr(module, "__file__", None)
    packages = list(getattr(module, "__path__", ()))
    return any(Path(place).resolve().parent == folder for place in packages or ([file] if file else []))


def _import(kind: str, name: str, module: str, folder: Path) -> None:
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        importlib.import_module(module)
    except Exception as error:  # a user's module may fail in any way while it is imported
        raise PolicyError(f"{kind} {name!r}: cannot import {module!r}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(folder))
    # Behind everything else, for what the module imports later.
    sys.path.append(str(folder))
