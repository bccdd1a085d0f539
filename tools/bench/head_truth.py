"""Gradients of an output head in float64: what every side of ``head_sides`` is measured against."""

from __future__ import annotations

import torch
from torch import Tensor

from tools.bench.head_sides import ENTROPY_WEIGHT, HeadInputs, upstream

_TOKENS = 128  # of which all logits exist at once
_ROWS = 4096


@torch.no_grad()
def exact_gradients(inputs: HeadInputs, tokens: Tensor, entries: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the loss of ``head_sides.forward_backward``, of which each is a sum over what is not asked for too.

    With upstream u, entropy H and weight c of the entropies, for logit z of vocabulary entry v::

        dz_v = u (1[v = target] - p_v) - c p_v (log p_v + H)

    Args:
        inputs: T tokens of width D, V vocabulary entries.
        tokens: [n] int64, rising: whose hidden states.
        entries: [m] int64: which rows of the weight.

    Returns:
        d_hidden [n, D] and d_weight [m, D] in float64.
    """
    factors, parts = upstream(len(inputs.hidden)).double(), inputs.weight.split(_ROWS)
    d_weight = torch.zeros(len(entries), inputs.hidden.shape[1], dtype=torch.float64)
    d_hidden = []
    for block in torch.arange(len(factors)).split(_TOKENS):
        hidden, factor = inputs.hidden[block].double(), factors[block, None]
        scale = inputs.scale[block, None].double()
        logprobs = (torch.cat([hidden @ part.double().T for part in parts], 1) * scale).log_softmax(-1)
        probability = logprobs.exp()
        entropy = -(probability * logprobs).sum(-1, keepdim=True)
        d_logits = -probability * (factor + ENTROPY_WEIGHT * (logprobs + entropy))
        d_logits.scatter_add_(1, inputs.target[block, None], factor)
        d_logits *= scale
        d_weight += d_logits[:, entries].T @ hidden
        chosen = d_logits[torch.isin(block, tokens)].split(_ROWS, 1)
        d_hidden.append(sum((piece @ part.double() for piece, part in zip(chosen, parts, strict=True)),
                            hidden.new_zeros(())))
    return torch.cat(d_hidden), d_weight
