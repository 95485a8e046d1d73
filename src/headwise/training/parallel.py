"""Keep one model on several processes: whole on each, or in shards (PyTorch's FSDP2).

Replicas add up their gradients once, after the backward passes of a step. PyTorch's `DistributedDataParallel` would
start adding while it still computes, but wants every parameter used in every step, trained from the first step on, and
reached through `forward`; dropped layers, vectors frozen for a while and a loss that calls parts of a model break that.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import compress

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from headwise.training.runtime import Runtime

__all__ = ["assign", "gathered", "local", "shard", "sum_gradients", "synchronize", "whole"]

_BUCKET = 2**23
"""Numbers that are added up in one message: large enough to fill the wire, small beside the model."""


def shard(model: nn.Module, runtime: Runtime, methods: Sequence[str] = ()) -> None:
    """Spread the parameters over the processes: each entry of a `ModuleList` by itself, then the rest.

    Args:
        model: changed in place; its parameters become `DTensor`s.
        runtime: the processes.
        methods: methods besides `forward` by which the model or its layers are called.
    """
    # Said of every linear layer on three axes; nothing in our layers works in place on what another gave it.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
    mesh = init_device_mesh(runtime.device.type, (runtime.processes,))
    for layers in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        for layer in layers:
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for called in model.modules():
        for method in methods:
            if isinstance(called, FSDPModule) and hasattr(called, method):
                register_fsdp_forward_method(called, method)
    for module in _sharded(model):
        # Sums over processes, like those of replicas; gloo has no other reduction.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def synchronize(model: nn.Module, runtime: Runtime) -> None:
    """Give all replicas the parameters and buffers of the first process."""
    if runtime.processes > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            distributed.broadcast(tensor.detach(), src=0)


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Hold the whole model on every process, so that each may call it as often as it likes."""
    modules = _sharded(model)
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()
            module.set_reshard_after_forward(module is not modules[0], recurse=False)


def sum_gradients(parameters: Iterable[nn.Parameter], runtime: Runtime) -> None:
    """Add up the gradients of all replicas: 0 where a parameter was not used, none where it was used nowhere."""
    replicas = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
    if runtime.processes == 1 or not replicas:
        return
    used = runtime.any(*(parameter.grad is not None for parameter in replicas))
    for parameter in compress(replicas, used):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([parameter.grad for parameter in replicas if parameter.grad is not None]):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        distributed.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [part.view_as(each) for part, each in zip(parts, bucket, strict=True)])


def local(tensor: Tensor) -> Tensor:
    """Give what this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensor: Tensor) -> Tensor:
    """Give the whole of a tensor, on the CPU; every process must ask."""
    complete = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return complete.detach().cpu()


def assign(held: Tensor, complete: Tensor) -> None:
    """Fill a tensor, or what this process holds of it, from the whole."""
    if isinstance(held, DTensor):
        complete = complete.to(held.device, held.dtype)
        complete = distribute_tensor(complete, held.device_mesh, held.placements, src_data_rank=None).to_local()
    local(held.detach()).copy_(complete)


def _sharded(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Put tensors of one type together, in their order."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and (bucket[0].dtype != tensor.dtype or sum(map(torch.numel, bucket)) + tensor.numel() > _BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
