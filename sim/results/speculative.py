"""What became of draft tokens: the section ``speculative`` of the summary, with vLLM's figures of the same names."""

from __future__ import annotations

from typing import Any

from sim.results.record import RunRecord


def speculative_section(record: RunRecord) -> dict[str, Any] | None:
    """Totals and rates over the run; None without speculative decoding, rates None where nothing was drafted.

    ``mean_acceptance_length`` counts the token that the model itself adds, as in vLLM's log; ``tokens_per_step`` leaves
    out accepted drafts behind a request's last token, which no client gets.
    """
    drafts = record.drafts
    if drafts is None:
        return None
    verified = drafts.num_verifications
    return {
        "num_speculative_tokens": drafts.num_speculative_tokens,
        "num_drafts": verified,
        "draft_tokens": drafts.num_draft_tokens,
        "accepted_tokens": drafts.num_accepted_tokens,
        "acceptance_rate": _ratio(drafts.num_accepted_tokens, drafts.num_draft_tokens),
        "acceptance_rate_per_position": [_ratio(accepted, verified) for accepted in drafts.num_accepted_at],
        "mean_acceptance_length": _ratio(verified + drafts.num_accepted_tokens, verified),
        "tokens_per_step": _ratio(drafts.num_output_tokens, verified),
    }


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
