"""Muon: momentum whose direction is made orthogonal, for the matrices of a network; AdamW for the
rest. (Jordan et al., 2024, kellerjordan.github.io/posts/muon; scaled as in arXiv 2502.16982.)

A gradient of a matrix is mostly a few large directions. Made orthogonal, it moves all directions
alike, so that what is rare is learned, too. `torch.optim.Muon` does the same for matrices alone and
in bfloat16, in which CPUs without bfloat16 are ten times slower; this one takes convolutions.
"""

import math
from collections import defaultdict

import torch
from torch import Tensor, nn

MOMENTUM, DECAY = .95, .01


def orthogonal(x: Tensor, steps: int = 5) -> Tensor:
    """Matrices (..., m, n) with about the singular vectors of x, and singular values between .7 and
    1.2: of x = U S V^T about U V^T, by Newton and Schulz's iteration, in matrix products alone."""
    # With x scaled so that no singular value is above 1, each step applies to all of them
    #     f(s) = a s + b s^3 + c s^5,
    # whose slope a at 0 lifts the small ones quickly.
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if x.shape[-2] > x.shape[-1]:
        return orthogonal(x.mT, steps).mT
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x


class Muon(torch.optim.AdamW):
    """AdamW, but for the weights of two and more dimensions within a network, of which (O, I, k, k)
    is a matrix of O rows. A step's root mean square is .2 times the learning rate there, about
    AdamW's, so that all take the same rate. The layers at the network's `ends`, which are those
    with one of these words in their names, are AdamW's, as are the vectors."""

    def __init__(self, network: nn.Module, lr: float, ends: tuple[str, ...]):
        def inner(name: str, p: nn.Parameter) -> bool:
            return p.ndim > 1 and not any(word in name for word in ends)

        named = list(network.named_parameters())
        groups = [{"params": [p for name, p in named if inner(name, p) == kind]}
                  for kind in (True, False)]
        super().__init__(groups, lr, weight_decay=DECAY, foreach=True)

    @torch.no_grad()
    def step(self) -> None:
        inner, rest = groups = self.param_groups
        self.param_groups = [rest]
        super().step()
        self.param_groups = groups
        alike = defaultdict(list)  # matrices of one shape are made orthogonal together
        for p in inner["params"]:
            if p.grad is None:  # not a part of what was computed
                continue
            state = self.state[p]
            if not state:
                state.update(step=torch.tensor(0.0), momentum=torch.zeros_like(p))
            state["step"] += 1  # AdamW wants to find one in each state that it loads
            m = state["momentum"].mul_(MOMENTUM).add_(p.grad)
            direction = (p.grad + MOMENTUM * m).flatten(1)              # Nesterov's: (O, I k k)
            alike[direction.shape].append((p, direction))
        for shape, found in alike.items():
            parameters, directions = zip(*found, strict=True)
            directions = orthogonal(torch.stack(directions)) * .2 * math.sqrt(max(shape))
            for p, direction in zip(parameters, directions, strict=True):
                p.mul_(1 - inner["lr"] * DECAY).sub_(direction.view_as(p), alpha=inner["lr"])
