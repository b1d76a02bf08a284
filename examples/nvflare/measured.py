"""The network of the federation, what its clients measure, and their images."""

from typing import Any

import torch

import gifd
from gifd.integrations.leak import Measure
from gifd.leaves import dead_leaves


def model() -> gifd.Model:
    """A small network; stands for yours."""
    return gifd.Model(module=gifd.ConvNet(10).eval())


def images(site: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A client's private images and labels; here random shapes."""
    rng = torch.Generator().manual_seed(int(site.removeprefix("site-")))
    return dead_leaves(1, (3, 32, 32), rng), torch.randint(10, (1,), generator=rng)


def measure() -> Measure:
    """For `LeakageFilter`."""
    attack = gifd.attacks.ig(restarts=1).with_steps(100)
    protocol = gifd.FedAvg(steps=1, lr=0.1)
    return Measure(model=model(), image_shape=(3, 32, 32), protocol=protocol, attack=attack)


def batch(result: Any, fl_ctx: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The images behind a client's reply."""
    return images(fl_ctx.get_identity_name())
