"""``docs/accuracy-tables.md`` from scores and outcomes: every number of the tables is computed."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.accuracy_experiment import Sets
from benchmarks.accuracy_operators import KINDS, ProfileScore
from benchmarks.accuracy_peers import ELSEWHERE, SERVINGSIM, SERVINGSIM_ERRORS, SERVINGSIM_SOURCE
from benchmarks.accuracy_runs import Outcome
from benchmarks.accuracy_scores import LARGEST, MARGIN, SATURATED, Bar, Score, scores, slices
from benchmarks.accuracy_sets import METRICS, SOURCES, STATISTICS
from benchmarks.accuracy_text import ABOUT, FITTED, HONEST, flow
from benchmarks.speed import markdown


def percent(value: float) -> str:
    """With one decimal and a sign."""
    return f"{100 * value:+.1f} %"


def plain(value: float) -> str:
    """A size without a sign."""
    return f"{100 * value:.1f} %"


def milliseconds(value: float) -> str:
    """Three digits that matter."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 100 else f"{value:.0f}"


# --- tables ------------------------------------------------------------------------------------


def bar_kind(bar: Bar) -> str:
    """Which statistic of the errors a bar is for."""
    if bar.statistic == LARGEST:
        return "each run" if len(bar.keys) == 1 else "each of " + ", ".join(STATISTICS)
    return "of the runs" if bar.statistic == SATURATED else bar.statistic


def score_table(found: Sequence[Score]) -> str:
    """One row per set and metric."""
    rows: list[tuple[str, ...]] = [
        ("set", "metric", "runs", "median", "MAPE", "bias", "largest", "bar", "aim", "reached", "met")
    ]
    for each in found:
        kind = bar_kind(each.bar)
        rows.append(
            (
                each.bar.group,
                each.bar.label,
                f"{each.num_experiments}",
                plain(each.median),
                plain(each.mape),
                percent(each.bias),
                plain(each.largest),
                f"{plain(each.bar.limit)} ({kind})",
                "" if each.bar.aim is None else plain(each.bar.aim),
                plain(each.scored),
                "yes" if each.met else "**no**",
            )
        )
    return markdown(rows)


def operator_table(found: Sequence[ProfileScore]) -> str:
    """One row per profile and operator."""
    rows: list[tuple[str, ...]] = [
        ("GPU", "operator", *(f"{what}: median (p90), points" for what in KINDS.values()), "at most", "met")
    ]
    for profile in found:
        for each in profile.operators:
            cells = []
            for kind in KINDS:
                error = each.error(kind)
                cells.append(
                    "" if error is None else f"{plain(error.median)} ({plain(error.p90)}), {error.num_points:,}"
                )
            in_a_layer = each.operator in ("gemm", "decode_attention", "prefill_attention")
            random = each.error("random_points")
            bar = profile.bar if in_a_layer else None
            met = "" if bar is None or random is None else "yes" if random.median <= bar else "**no**"
            rows.append((profile.name, each.operator, *cells, "" if bar is None else plain(bar), met))
    return markdown(rows)


def slice_table(outcomes: Sequence[Outcome], group: str) -> str:
    """Where a set is off."""
    rows: list[tuple[str, ...]] = [
        ("of these", "experiments", "TPOT, median signed error", "TTFT, median signed error")
    ]
    rows += [
        (each.setting, f"{each.num_experiments}", percent(each.median_tpot), percent(each.median_ttft))
        for each in slices(outcomes, group)
    ]
    return markdown(rows) if len(rows) > 1 else ""


def run_table(outcome: Outcome) -> str:
    """All statistics of one run, with a peer's beside ours where it publishes them."""
    experiment = outcome.experiment
    peer = SERVINGSIM_ERRORS.get(experiment.group) or SERVINGSIM_ERRORS.get(experiment.name, {})
    rows: list[tuple[str, ...]] = [
        ("", "predicted ms", "measured ms", "error", *((f"{SERVINGSIM}'s error",) if peer else ()))
    ]
    for metric in (*METRICS, "itl"):
        for name in STATISTICS:
            key = f"{name}_{metric}_ms"
            error = outcome.error(key)
            if error is None:
                continue
            label = {"e2el": "E2E"}.get(metric, metric.upper())
            cells = (milliseconds(outcome.predicted[key]), milliseconds(outcome.experiment.measured[key]))
            rows.append((f"{label} {name}", *cells, percent(error), *((percent(peer[key]),) if peer else ())))
    return markdown(rows)


def experiment_table(outcomes: Sequence[Outcome]) -> str:
    """Every point of a fixed-concurrency set."""
    columns = ("experiment", "TTFT ms predicted", "measured", "error", "TPOT ms predicted", "measured", "error")
    has_halves = any(outcome.experiment.is_training for outcome in outcomes)
    has_unsaid = any(outcome.experiment.unsaid for outcome in outcomes)
    rows: list[tuple[str, ...]] = [
        (*columns, *(("half",) if has_halves else ()), *(("not in the scenario",) if has_unsaid else ()))
    ]
    for outcome in outcomes:
        cells = [outcome.experiment.name]
        for key in ("mean_ttft_ms", "mean_tpot_ms"):
            error = outcome.error(key)
            measured = milliseconds(outcome.experiment.measured[key])
            if error is None:
                cells += [outcome.failure, measured, ""]
            else:
                cells += [milliseconds(outcome.predicted[key]), measured, percent(error)]
        if has_halves:
            cells.append("training" if outcome.experiment.is_training else "validation")
        if has_unsaid:
            cells.append(", ".join(outcome.experiment.unsaid))
        rows.append(tuple(cells))
    return markdown(rows)


def unscored_table(sets: Sets) -> str:
    """What is in the files and not in the scores."""
    return markdown(
        [("rows", "count", "why not"), *((each.what, f"{each.count}", each.reason) for each in sets.unscored)]
    )


# --- the page ----------------------------------------------------------------------------------


def tables_page(sets: Sets, outcomes: Sequence[Outcome], operators: Sequence[ProfileScore], head: str) -> str:
    """The whole of it. ``head`` says when, with what version and on what it was made."""
    parts = [_opening(head)]
    found = scores(outcomes)
    if found:
        parts.append(
            "## Whole engines\n\nValidation experiments only.\n\n" + score_table(found) + "\n\n" + flow(FITTED)
        )
    training = scores(outcomes, training=True)
    if training:
        parts.append("The training half, for comparison:\n\n" + score_table(training))
    if operators:
        parts.append(_operator_section(operators))
    parts.append("## What is off, and why\n\n" + "\n".join(flow(f"- {line}", "  ") for line in HONEST))
    parts.append(_peer_section())
    about = ""
    for group in sets.groups():
        told, about = about, ABOUT.get(group, "")
        text = "As above." if about == told else flow(about)
        parts.append(_set_section(group, text, [each for each in outcomes if each.experiment.group == group]))
    if sets.unscored:
        parts.append("## Not scored\n\n" + unscored_table(sets))
    parts.append("## Data\n\n" + "\n".join(flow(f"- `{name}`: {source}", "  ") for name, source in SOURCES.items()))
    return "\n\n".join(parts) + "\n"


def _opening(head: str) -> str:
    text = f"""
        What stands behind [accuracy.md](accuracy.md), made by the same command; `DIR` holds the data files named at the
        end. `--only SET --rows` prints the errors of some sets, `--quick` takes a few runs of each. `--check` exits
        with 1 where a set is off by more than {MARGIN:g} times its bar (where a bar is known to be missed, {MARGIN:g}
        times what was reached). Errors are predicted / measured - 1; *bias* is their mean, *MAPE* the mean of their
        sizes.
        """
    return "\n\n".join(("# Accuracy: the tables", flow(text), head))


def _operator_section(operators: Sequence[ProfileScore]) -> str:
    stated = {each.is_stated for profile in operators for each in profile.operators}
    if stated == {True}:
        source = "as the profiles state it, found on the full tables that they were made from"
    else:
        source = "found on the points that the built-in profiles keep, which are those hardest to do without"
    text = f"""
        Times that the prediction did not see: {source}. Separate collections of the same operators on the same GPU
        differ by 4 to 7 %."""
    return f"## Single operators\n\n{flow(text)}\n\n{operator_table(operators)}"


def _peer_section() -> str:
    rows = [("simulator", "what it publishes", "source"), *((each.name, each.what, each.source) for each in ELSEWHERE)]
    text = f"""
        On four runs the errors that LLMServingSim publishes of itself stand beside ours, at the sets:
        {SERVINGSIM_SOURCE}. What others publish about other sets, for the order of magnitude only:"""
    return f"## Other simulators\n\n{flow(text)}\n\n{markdown(rows)}"


def _set_section(group: str, about: str, outcomes: Sequence[Outcome]) -> str:
    parts = [f"## {group}", about]
    if any(outcome.is_of_statistics for outcome in outcomes):
        for outcome in outcomes:
            if len(outcomes) > 1:
                parts.append(f"{outcome.experiment.name}:")
            parts.append(run_table(outcome) if not outcome.failure else f"Failed: {outcome.failure}")
    else:
        parts += [slice_table(outcomes, group), experiment_table(outcomes)]
    return "\n\n".join(part for part in parts if part)
