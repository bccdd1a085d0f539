"""fp32 master weights, gradient accumulation, clipping, learning-rate schedule, NaN guard."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from engine.config.learning import OptimiserConfig, Schedule


class MasterOptimiser:
    """AdamW over fp32 master weights of a network that may compute in bf16.

    Gradients of all micro-batches are summed in fp32; after a step the working weights are rounded from
    the master. In fp32 the working weights are the master.
    """

    def __init__(self, network: torch.nn.Module, config: OptimiserConfig, total_steps: int) -> None:
        self.config = config
        self.total_steps = max(total_steps, 1)
        self.steps = 0
        named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in named]
        self._working = [parameter for _, parameter in named]
        self._separate = any(parameter.dtype != torch.float32 for parameter in self._working)
        self._master = (
            [torch.nn.Parameter(p.detach().float().clone()) for p in self._working]
            if self._separate
            else self._working
        )
        self._adam = self._fresh()

    def _fresh(self) -> torch.optim.AdamW:
        config = self.config
        return torch.optim.AdamW(
            self._master, lr=config.learning_rate, betas=(config.beta1, config.beta2),
            eps=config.epsilon, weight_decay=config.weight_decay, fused=True,
        )

    def reset(self) -> None:
        """Clear first and second moments (Kimi k1.5, section 2.3.2: a new reference, a new objective)."""
        self._adam = self._fresh()

    def collect(self) -> None:
        """Add the gradients of one micro-batch to the fp32 sum."""
        if not self._separate:
            return
        for master, working in zip(self._master, self._working, strict=True):
            if working.grad is None:
                continue
            if master.grad is None:
                master.grad = working.grad.float()
            else:
                master.grad.add_(working.grad)
            working.grad = None

    def learning_rate(self) -> float:
        """Of the next step: linear warm-up, then the schedule down to its final fraction."""
        config, done = self.config, self.steps
        if done < config.warmup_steps:
            return config.learning_rate * (done + 1) / config.warmup_steps
        if config.schedule is Schedule.constant:
            return config.learning_rate
        span = max(self.total_steps - config.warmup_steps, 1)
        progress = min((done - config.warmup_steps) / span, 1.0)
        shape = 1.0 - progress if config.schedule is Schedule.linear else 0.5 * (1 + math.cos(math.pi * progress))
        return config.learning_rate * (config.final_fraction + (1.0 - config.final_fraction) * shape)

    def step(self) -> float:
        """Clip, step, round the working weights; returns the gradient norm before clipping.

        A norm that is not finite changes nothing: gradients are dropped and the caller must not commit.
        """
        gradients = [p.grad for p in self._master if p.grad is not None]
        norm = self._norm(gradients)
        if math.isfinite(norm) and gradients:
            limit = self.config.max_gradient_norm
            if limit and norm > limit:
                torch._foreach_mul_(gradients, limit / (norm + 1e-6))
            for group in self._adam.param_groups:
                group["lr"] = self.learning_rate()
            self._adam.step()
            self._round()
        self._adam.zero_grad(set_to_none=True)
        if math.isfinite(norm):
            self.steps += 1
        return norm

    def discard(self) -> None:
        """Drop the gradients collected so far."""
        self._adam.zero_grad(set_to_none=True)

    @staticmethod
    def _norm(gradients: list[Tensor]) -> float:
        if not gradients:
            return 0.0
        return float(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients])))

    @torch.no_grad()
    def _round(self) -> None:
        if self._separate:
            for master, working in zip(self._master, self._working, strict=True):
                working.copy_(master)

    def master_tensors(self) -> dict[str, Tensor]:
        """Name -> fp32 master tensor."""
        return dict(zip(self.names, (p.detach() for p in self._master), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Moments, master weights and the step count."""
        return {"adam": self._adam.state_dict(), "master": self.master_tensors(), "steps": self.steps}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`, bit for bit."""
        for name, master in zip(self.names, self._master, strict=True):
            master.copy_(state["master"][name])
        self._round()
        self._adam = self._fresh()
        self._adam.load_state_dict(state["adam"])
        self.steps = int(state["steps"])
