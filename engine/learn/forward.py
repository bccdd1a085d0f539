"""The forward pass of a learner: log-probs of the tokens of one packed row."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from engine.learn.packing import PackedRow
from engine.models.policy import head_weight, hidden_states
from engine.models.sharding import as_one_forward
from engine.ops.token_logprob import token_logprob
from engine.trace import spanned


@spanned("forward")
def score_row(network: Any, row: PackedRow, want_entropy: bool = False) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies of the loss-carrying tokens of a row: [M] and [M], fp32 nats.

    Args:
        network: from ``engine.models.policy``.
        row: one micro-batch.
        want_entropy: False leaves the entropies 0.
    """

    def forward() -> tuple[Tensor, Tensor]:
        hidden = hidden_states(network, row.tokens, row.positions, row.blocks)
        logprob, entropy, _ = token_logprob(
            hidden, head_weight(network), row.target, row.inverse_temperature, rows=row.source,
            want_entropy=want_entropy,
        )
        return logprob, entropy

    return as_one_forward(network, forward)
