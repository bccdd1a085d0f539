"""fp32 master weights, gradient accumulation, clipping, learning-rate schedule, NaN guard."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.config.learning import OptimiserConfig, Schedule
from engine.errors import CheckpointError
from engine.models.ranks import ALONE, Ranks
from engine.models.sharding import Gathered, is_sharded, local, rows_here
from engine.trace import spanned


class MasterOptimiser:
    """AdamW over fp32 master weights of a network that may compute in bf16.

    Gradients of all micro-batches are summed in fp32; after a step the working weights are rounded from
    the master. In fp32 the working weights are the master. Of a network that is sharded over ranks each optimises
    the rows it holds, which are master weights already.
    """

    def __init__(self, network: torch.nn.Module, config: OptimiserConfig, total_steps: int,
                 ranks: Ranks = ALONE) -> None:
        """Take over the trainable weights of a network.

        Args:
            network: its parameters that require grad are optimised.
            config: Adam's numbers and the learning-rate schedule.
            total_steps: optimiser steps at which the schedule ends.
            ranks: over which the network is sharded.
        """
        self._ranks = ranks
        self.config = config
        self.total_steps = max(total_steps, 1)
        self.steps = 0
        named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in named]
        self._working = [parameter for _, parameter in named]
        self._separate = any(parameter.dtype != torch.float32 for parameter in self._working)
        self._sharded = any(map(is_sharded, self._working))
        if self._sharded:
            self._master = [torch.nn.Parameter(local(p.detach())) for p in self._working]
        elif self._separate:
            self._master = [torch.nn.Parameter(p.detach().float().clone()) for p in self._working]
        else:
            self._master = self._working
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
        if self._sharded:  # summed over micro-batches and ranks already
            for master, working in zip(self._master, self._working, strict=True):
                master.grad = None if working.grad is None else local(working.grad)
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
        linear = config.schedule is Schedule.linear
        shape = 1.0 - progress if linear else 0.5 * (1.0 + math.cos(math.pi * progress))
        return config.learning_rate * (config.final_fraction + (1.0 - config.final_fraction) * shape)

    @spanned("optimiser")
    def step(self) -> float:
        """Clip, step, round the working weights; returns the gradient norm before clipping.

        A norm that is not finite changes nothing: gradients are dropped and the caller must not commit.
        A step for which nothing was forwarded is a step with gradients of 0: moments decay as they would
        have, had trajectories without advantage been forwarded.
        """
        if all(master.grad is None for master in self._master):
            for master in self._master:
                master.grad = torch.zeros_like(master)
        gradients = [master.grad for master in self._master if master.grad is not None]
        norm = self._norm(gradients)
        if math.isfinite(norm):
            limit = self.config.max_gradient_norm
            if limit and norm > limit:
                torch._foreach_mul_(gradients, limit / (norm + 1e-6))
            for group in self._adam.param_groups:
                group["lr"] = self.learning_rate()
            self._adam.step()
            self._round()
            self.steps += 1
        self.discard()
        return norm

    @torch.no_grad()
    def to(self, device: torch.device) -> None:
        """Take master weights and moments along to a device; those that are the working weights moved with these."""
        for master, working in zip(self._master, self._working, strict=True):
            master.data = local(working.detach()) if self._sharded else master.data.to(device)
        for state in self._adam.state.values():
            for name, value in state.items():
                state[name] = value.to(device) if isinstance(value, Tensor) else value

    def discard(self) -> None:
        """Drop the gradients collected so far."""
        for master, working in zip(self._master, self._working, strict=True):
            master.grad = working.grad = None

    def _norm(self, gradients: list[Tensor]) -> float:
        here = float(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients])))
        return math.hypot(*self._ranks.gather(here))

    @torch.no_grad()
    def _round(self) -> None:
        if self._separate:
            for master, working in zip(self._master, self._working, strict=True):
                working.copy_(master)

    def master_tensors(self) -> Mapping[str, Tensor]:
        """Name -> whole fp32 master tensor; of a sharded network each is gathered when it is asked for."""
        if self._sharded:
            return Gathered(dict(zip(self.names, self._working, strict=True)), self._ranks)
        return self._masters()

    def _masters(self) -> dict[str, Tensor]:
        return dict(zip(self.names, (p.detach() for p in self._master), strict=True))

    def rows(self) -> dict[str, tuple[int, int, int]]:
        """Name -> first row and one past the last row that are held here, and rows of the whole tensor."""
        return {name: (*rows_here(p, self._ranks), p.shape[0] if p.ndim else 1)
                for name, p in zip(self.names, self._working, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Moments, master weights and the step count, of the rows held here; the tensors are live, write
        them before a step.
        """
        return {"adam": self._adam.state_dict(), "master": self._masters(), "steps": self.steps}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`, bit for bit.

        Raises:
            CheckpointError: the state belongs to another network.
        """
        if set(state["master"]) != set(self.names):
            differ = sorted(set(state["master"]) ^ set(self.names))
            raise CheckpointError(
                f"the optimiser state is of another network, {len(differ)} weights differ, for example "
                f"{differ[0]!r}: resume with the model and adapter options it was written with"
            )
        for name, master in zip(self.names, self._master, strict=True):
            master.copy_(state["master"][name])
        self._round()
        self._adam = self._fresh()
        # Adam keeps what it is given where types agree: copied, so that two optimisers share no moments.
        self._adam.load_state_dict(copy.deepcopy(state["adam"]))
        self.steps = int(state["steps"])
