"""Gradients without autograd's engine, which starts threads for a device that has to exist."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction


@torch.no_grad()
def gradients(loss: Tensor) -> dict[Tensor, Tensor]:
    """Walk the graph of a scalar backwards.

    Returns:
        the gradient of each leaf that takes part.
    """
    arrived: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    found = {}
    for node in reversed(_inputs_first(loss.grad_fn)):
        own = arrived.pop(node, {})
        if not own:
            continue
        if hasattr(node, "variable"):
            found[node.variable] = own[0]
            continue
        # Python's own functions cannot be called
        call = node.apply if isinstance(node, BackwardCFunction) else node
        given = call(*(own.get(n) for n in range(len(node._input_metadata))))
        for gradient, (target, n) in zip(_tuple(given), node.next_functions, strict=False):
            if target is None or gradient is None:
                continue
            like = target.variable if hasattr(target, "variable") else target._input_metadata[n]
            gradient = gradient.sum_to_size(like.shape).to(like.dtype)  # as the engine does
            slot = arrived.setdefault(target, {})
            slot[n] = slot[n] + gradient if n in slot else gradient
    return found


def _inputs_first(root: Any) -> list[Any]:
    """Return the nodes of a graph, each after those that it passes gradients to."""
    found, seen, stack = [], set(), [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            found.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(target, False) for target, _ in node.next_functions if target is not None]
    return found


def _tuple(x: Any) -> tuple[Any, ...]:
    return x if isinstance(x, tuple) else (x,)
