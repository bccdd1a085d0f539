"""A network whose weights are spread over ranks, each holding some rows of every one of them.

torch's FSDP2 does it: layer by layer the rows are gathered before they are needed and let go afterwards, and
gradients return to whoever holds the rows. Held are fp32 master weights; gathered are working weights in the
type of the forward pass, rounded before they travel. Gradients are summed over ranks in fp32, not averaged: the
loss of a rank is its share of the loss of the whole minibatch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MethodType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from engine.models.policy import published_tensors
from engine.models.ranks import Ranks

Result = TypeVar("Result")

# Renamed by torch 2.13, which warns of the old names.
_ALL_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_REDUCE_SCATTER = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def checkpoint_layers(network: Any) -> None:
    """Keep of every decoder layer only its input for the backward pass, which computes the layer once more."""
    base = network.get_base_model() if hasattr(network, "get_base_model") else network
    for layer in base.model.layers:
        # The forward and not the call, so that hooks which gather the weights stay outside and run once.
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def shard(network: Any, ranks: Ranks, dtype: torch.dtype, trained: bool = True) -> Any:
    """Spread a network, equal on all ranks, over them; a collective.

    Args:
        network: from ``engine.models.policy``, on any device; changed in place, each part moves to the ranks' one.
        ranks: of this process; alone: nothing is done.
        dtype: type of forward and backward.
        trained: False for a network that only serves as an anchor, which is held in ``dtype``.
    """
    if ranks.alone:
        return network
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for part in (*network.model.layers, network):
        if trained:  # part by part, so that the whole never stands in fp32
            _widen(part)
        fully_shard(part, mesh=ranks.mesh, mp_policy=policy)
    for module in network.modules():
        if hasattr(module, "set_gradient_divide_factor"):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            if ranks.mesh.device_type == "cpu":
                module.set_custom_all_gather(_Watched(ranks, _ALL_GATHER))
                module.set_custom_reduce_scatter(_Watched(ranks, _REDUCE_SCATTER))
    network.perform = MethodType(_perform, network)
    register_fsdp_forward_method(network, "perform")
    return network


def _widen(part: torch.nn.Module) -> None:
    """Parameters to fp32 that are not spread yet; buffers stay."""
    for parameter in part.parameters():
        if not is_sharded(parameter):
            parameter.data = parameter.data.float()


class _Watched:
    """A collective that counts the seconds until it returns: those of waiting and of moving bytes."""

    def __init__(self, ranks: Ranks, function: Callable[..., Any]) -> None:
        self._ranks = ranks
        self._function = function

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for what arrives."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, **options: Any) -> Any:
        """The collective."""
        began = time.perf_counter()
        work = self._function(output_tensor, input_tensor, group=group, **options)
        self._ranks.waited_s += time.perf_counter() - began
        return work


def _perform(_: Any, function: Callable[[], Result]) -> Result:
    return function()


def as_one_forward(network: Any, function: Callable[[], Result]) -> Result:
    """Run a function that forwards the network; its weights are whole meanwhile. A collective where it is sharded.

    Embedding and head stay whole until the backward pass is done; without one they are let go at once.
    """
    if not hasattr(network, "perform"):
        return function()
    result: Result = network.perform(function)
    if not torch.is_grad_enabled():
        network.reshard()  # else the next forward would meet weights from before a step
    return result


def is_sharded(tensor: Tensor) -> bool:
    """Whether only some rows of it are here."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """The rows that are here, over the same memory."""
    rows: Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return rows


def rows_here(tensor: Tensor, ranks: Ranks) -> tuple[int, int]:
    """First row and one past the last row of a weight that this rank holds."""
    count = tensor.shape[0] if tensor.ndim else 1
    if not is_sharded(tensor):
        return 0, count
    step = -(-count // ranks.size)
    return min(ranks.rank * step, count), min((ranks.rank + 1) * step, count)


class Gathered(Mapping[str, Tensor]):
    """Named weights of which each is put together on rank 0 when it is asked for, and not kept.

    ``[name]`` is a collective: all ranks ask for the same names in the same order, and all but rank 0 get a
    tensor without memory.
    """

    def __init__(self, tensors: Mapping[str, Tensor], ranks: Ranks, dtype: torch.dtype | None = None) -> None:
        """Wrap weights.

        Args:
            tensors: sharded ones, and whole ones that every rank has; tied names have one tensor.
            ranks: of this process.
            dtype: type that floating weights take before they travel; None: their own.
        """
        self._tensors = tensors
        self._ranks = ranks
        self._dtype = dtype

    def described(self) -> dict[str, Tensor]:
        """Name -> tensor on the meta device; tied names give the same one."""
        known: dict[int, Tensor] = {}
        for tensor in self._tensors.values():
            known[id(tensor)] = torch.empty(tensor.shape, dtype=self._type(tensor), device="meta")
        return {name: known[id(tensor)] for name, tensor in self._tensors.items()}

    def _type(self, tensor: Tensor) -> torch.dtype:
        return self._dtype if self._dtype is not None and tensor.is_floating_point() else tensor.dtype

    @torch.no_grad()
    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        here = local(tensor.detach()).to(self._type(tensor))
        if not is_sharded(tensor):
            return here
        step = -(-tensor.shape[0] // self._ranks.size)
        if len(here) < step:
            here = torch.cat([here, here.new_zeros(step - len(here), *here.shape[1:])])
        if not self._ranks.first:
            dist.gather(here.contiguous(), dst=0)
            return torch.empty(tensor.shape, dtype=here.dtype, device="meta")
        whole = here.new_empty(step * self._ranks.size, *here.shape[1:])
        dist.gather(here.contiguous(), list(whole.split(step)), dst=0)
        return whole[: tensor.shape[0]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def working_weights(network: Any, ranks: Ranks, dtype: torch.dtype) -> Mapping[str, Tensor]:
    """Name -> tensor of the plain model in the type of the forward pass, as generators receive it.

    Of a sharded network each is gathered when it is asked for: a collective, see :class:`Gathered`.
    """
    if ranks.alone:
        return published_tensors(network)
    parameters = dict(network.named_parameters(remove_duplicate=False))
    tensors = {name: parameters.get(name, tensor) for name, tensor in network.state_dict().items()}
    return Gathered(tensors, ranks, dtype)
