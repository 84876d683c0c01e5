"""Weights that the processes of a run share out among themselves (FSDP2): each holds a part of every one.

A layer's parts come together for its forward and again for its backward pass, and are let go behind it. So all
processes must run as many forwards, in the same order, and as many backward passes: `Policy.plan` sees to it.
https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from grace_exp.policy.policy import Policy


def shard(policy: "Policy", mesh: "DeviceMesh") -> None:
    """Leave this process its part of the policy's weights, layer by layer, on its device.

    Args:
        policy: Whole, the same on all processes, and not computed with yet.
        mesh: The processes, one dimension.
    """
    from torch.distributed.fsdp import fully_shard

    decoder: Any = policy.causal_lm.get_decoder()
    for layer in decoder.layers:
        fully_shard(layer, mesh=mesh)
    # Embeddings, head and final norm. True: else they stayed whole from one forward to the next, across an update too.
    fully_shard(policy, mesh=mesh, reshard_after_forward=True)


def is_sharded(module: nn.Module) -> bool:
    """Whether processes share the module's weights out among themselves."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def whole(tensor: Tensor) -> Tensor:
    """The tensor of all processes' parts; all of them call it. A tensor that is not shared is returned itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, in its own storage; the tensor itself where it is not shared."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, shared out as `like` is; the tensor itself where `like` is not shared.

    Nothing is sent, and of a mapped file only the part is read.
    """
    if not isinstance(like, DTensor):
        return tensor
    mesh, local_part = like.device_mesh, like.to_local()
    parts = tensor.chunk(mesh.size())  # along the first dimension, as `fully_shard` does
    rank = mesh.get_local_rank()
    local = (parts[rank] if rank < len(parts) else tensor[:0]).to(local_part.device, local_part.dtype)
    return DTensor.from_local(local, mesh, like.placements, run_check=False, shape=tensor.shape, stride=like.stride())


def make_whole(module: nn.Module) -> None:
    """Give the first process all of the module's weights, on the CPU, instead of its parts; all processes call it.

    Nothing can be computed with the module on the other processes afterwards.
    """
    first = dist.get_rank() == 0
    known: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if not isinstance(parameter, DTensor):
                continue
            if id(parameter) not in known:
                value = whole(parameter.detach())
                value = value.cpu() if first else value.new_empty(0)
                known[id(parameter)] = nn.Parameter(value, requires_grad=parameter.requires_grad)
            owner.register_parameter(name, known[id(parameter)])


def most_of_all_processes(number: int, device: torch.device) -> int:
    """The largest of the processes' numbers."""
    largest = torch.tensor(number, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)
