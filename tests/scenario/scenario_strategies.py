"""Random scenarios, drawn from what the schema itself says it takes."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from pydantic import BaseModel

from sim.scenario.fields import SCENARIO, Shape, field_shape
from sim.scenario.schema import NamedSpec

TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
    st.sampled_from(
        ["on", "null", "1e3", ".5e3", "012", "0x1F", "~", "2020-01-01", "a: b", "- x", "#x", "'", '"', "<<", "="]
    ),
)
PARAMETERS = st.dictionaries(
    st.sampled_from(["weight", "alpha", "on", "1", "two words"]),
    st.one_of(st.none(), st.booleans(), st.integers(-(10**6), 10**6), st.floats(allow_nan=False), TEXTS),
    max_size=2,
)


def values_of(shape: Shape) -> st.SearchStrategy[Any]:
    """Values that ``shape`` takes, as plain data."""
    found = [st.none()] if shape.nullable else []
    if shape.choices:
        found.append(st.sampled_from(shape.choices))
    elif shape.kind is bool:
        found.append(st.booleans())
    elif shape.kind is str:
        found.append(TEXTS)
    elif shape.kind is int:
        found.append(st.integers(*limits(shape, 1)))
    elif shape.kind is float:
        low, high = limits(shape, 0)
        found.append(
            st.floats(
                low, high, exclude_min="gt" in shape.bounds, exclude_max="lt" in shape.bounds, allow_subnormal=False
            )
        )
    elif shape.items:
        found.append(st.tuples(*map(values_of, shape.items)).map(list))
    elif shape.item is not None:
        found.append(st.lists(values_of(shape.item), min_size=2, max_size=3))
    elif shape.model is NamedSpec:
        found.append(st.builds(lambda name, params: {"name": name, **params}, TEXTS, PARAMETERS))
    elif shape.model is not None:
        found.append(section(shape.model))
    else:
        found += [values_of(branch) for branch in shape.branches.values()]
    return st.one_of(found)


def limits(shape: Shape, step: int) -> tuple[int, int]:
    """Smallest and largest number; ``step`` is how far open bounds are from the numbers inside."""
    bounds = shape.bounds
    return bounds.get("ge", bounds.get("gt", 0) + step), bounds.get("le", bounds.get("lt", 0) - step)


def section(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """A section with its required keys and some of the others."""
    required, optional = {}, {}
    for name, info in model.model_fields.items():
        shape = field_shape(model, name)
        if shape is not None:
            (required if info.is_required() else optional)[name] = st.deferred(lambda shape=shape: values_of(shape))
    return st.fixed_dictionaries(required, optional=optional)


SCENARIOS = values_of(SCENARIO)
