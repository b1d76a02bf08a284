"""Following: the state of a space that shows given images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from gifd.priors.generator import IMAGE, State
from gifd.search.spaces import Pixels, SearchContext, Space
from gifd.search.variables import Layout


def following(
    space: Space,
    context: SearchContext,
    state: State,
    goals: Float[Tensor, "S B C h w"],
    *,
    steps: int,
    lr: float,
    small: Callable[[Tensor], Tensor] = lambda images: images,
) -> State:
    """States (S, B, ...) that show these images, by Adam from `state`; the victim is not used.

    Args:
        space: of the states.
        context: of the run.
        state: (S, B, ...), where Adam begins.
        goals: images.
        steps: of Adam.
        lr: its learning rate.
        small: averages images down to the size of the goals.
    """
    if isinstance(space, Pixels) and state[IMAGE].shape == goals.shape:
        return {**state, IMAGE: context.model.normalize(goals).to(state[IMAGE])}
    layout = Layout.of(state, space.searched(context), axes=1)
    x = layout.pack(state).detach().requires_grad_()
    adam = torch.optim.Adam([x], lr=lr)
    for _ in range(steps):
        shown = space.pictures(context, {**state, **layout.unpack(x)})
        away = small(shown.flatten(0, 1)).reshape(goals.shape) - goals
        (x.grad,) = torch.autograd.grad(away.square().flatten(1).mean(1).sum(), x)
        adam.step()
    return {**state, **layout.unpack(x.detach())}
