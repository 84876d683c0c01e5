"""Shard a model's weights among the processes of a run (FSDP2): each holds a part of every weight.

A layer's parts are gathered for its forward and again for its backward pass, and freed afterwards. So all processes
must run the same number of forwards and backward passes, in the same order; `Policy.plan` ensures this.
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
    """Shard the policy's weights layer by layer: this process keeps its part on its device.

    Args:
        policy: The whole policy, equal on all processes, before its first forward.
        mesh: The processes, one dimension.
    """
    from torch.distributed.fsdp import fully_shard

    decoder: Any = policy.causal_lm.get_decoder()
    for layer in decoder.layers:
        fully_shard(layer, mesh=mesh)
    # Embeddings, head and final norm. With False they would stay gathered until the next forward, also over an update.
    fully_shard(policy, mesh=mesh, reshard_after_forward=True)


def is_sharded(module: nn.Module) -> bool:
    """Whether the module's weights are sharded."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor of all processes' parts; all must call it. An unsharded tensor is returned as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, in its own storage; an unsharded tensor is returned unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of a whole tensor, sharded as `like`; the tensor itself if `like` is not sharded.

    Nothing is sent between processes, and only the part is read from a mapped file.
    """
    if not isinstance(like, DTensor):
        return tensor
    mesh, local_part = like.device_mesh, like.to_local()
    parts = tensor.chunk(mesh.size())  # along the first dimension, as `fully_shard` does
    rank = mesh.get_local_rank()
    local = (parts[rank] if rank < len(parts) else tensor[:0]).to(local_part.device, local_part.dtype)
    return DTensor.from_local(local, mesh, like.placements, run_check=False, shape=tensor.shape, stride=like.stride())


def make_whole(module: nn.Module) -> None:
    """Gather all of the module's weights on the first process, on the CPU; all processes must call it.

    Afterwards the module cannot be used on the other processes.
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
    """Return the largest of the processes' numbers."""
    largest = torch.tensor(number, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)
