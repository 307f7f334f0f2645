"""Several processes: the only file that names torch.distributed. Alone, every function is the identity."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.distributed as td
from torch import Tensor

from intact.errors import TrainingError

__all__ = ["check_same", "extremes", "gather", "rank", "sum_with_gradient", "world_size"]


def world_size() -> int:
    """Number of processes of the default group; 1 without one."""
    return td.get_world_size() if td.is_available() and td.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 without a group."""
    return td.get_rank() if world_size() > 1 else 0


def extremes(ends: Tensor) -> Tensor:
    """(low, high) of this process to those of all processes."""
    if world_size() == 1:
        return ends
    both = torch.stack([-ends[0], ends[1]])
    td.all_reduce(both, op=td.ReduceOp.MAX)
    return torch.stack([-both[0], both[1]])


def gather(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Tensors of the same names, shapes and dtypes from every process, in the order of ranks."""
    if world_size() == 1:
        return [tensors]
    collected: list[dict[str, Tensor]] = [{} for _ in range(world_size())]
    for name, tensor in tensors.items():
        parts = [torch.empty_like(tensor) for _ in collected]
        td.all_gather(parts, tensor.contiguous())
        for state, part in zip(collected, parts, strict=True):
            state[name] = part
    return collected


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        td.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        total: Tensor = grads[0].clone()
        td.all_reduce(total)
        return total


def sum_with_gradient(x: Tensor) -> Tensor:
    """Sum over all processes, differentiable: each process's loss counts once."""
    if world_size() == 1:
        return x
    total: Tensor = _Sum.apply(x)  # type: ignore[no-untyped-call]
    return total


def check_same(what: str, text: str) -> None:
    """Refuse to go on if the processes do not agree on ``text``.

    Raises:
        TrainingError: on every rank, naming those that differ from rank 0.
    """
    if world_size() == 1:
        return
    digest = hashlib.sha256(text.encode()).digest()[:8]
    mine = torch.tensor([int.from_bytes(digest, "little", signed=True)])
    all_of_them = [torch.empty_like(mine) for _ in range(world_size())]
    td.all_gather(all_of_them, mine)
    wrong = [i for i, other in enumerate(all_of_them) if not torch.equal(other, all_of_them[0])]
    if wrong:
        raise TrainingError(f"the processes have different {what}s", got=f"ranks {wrong} differ from rank 0",
                            fix=f"make the same {what} in every process")
