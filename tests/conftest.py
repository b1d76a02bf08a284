"""Shapes checked at run time, and the small parts that several tests share."""

from jaxtyping import install_import_hook

install_import_hook("gifd", "beartype.beartype")  # before anything of gifd is imported

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from gifd.model import Model
from gifd.victims import ConvNet, LeNet

torch.set_num_threads(1)
settings.register_profile("gifd", deadline=None, max_examples=25)
settings.load_profile("gifd")


def _seeded(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


@pytest.fixture(scope="session")
def seeded() -> Callable[[int, Callable[[], nn.Module]], nn.Module]:
    """`seeded(seed, make)`: the network that `make()` draws, in eval mode."""
    return _seeded


@pytest.fixture(scope="session")
def pictures() -> Callable[..., Tensor]:
    """`pictures(seed, batch, side)`: smooth random images (B, 3, H, W) in [0, 1]."""

    def draw(seed: int, batch: int = 1, side: int = 8) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        coarse = torch.rand(batch, 3, 4, 4, generator=rng)
        return nn.functional.interpolate(coarse, size=(side, side), mode="bilinear").clamp(0, 1)

    return draw


@pytest.fixture
def smooth() -> Model:
    """A victim of sigmoids in float64: 8 px, 4 classes, hence finite differences are exact."""
    module = _seeded(0, lambda: LeNet(4, size=8)).double()
    return Model(module=module, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))


@pytest.fixture
def victim() -> Model:
    """A victim of ReLUs and batch norm in float32: 16 px, 4 classes."""
    module = _seeded(0, lambda: ConvNet(4, width=4))
    return Model(module=module, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))


Fingerprint = dict[str, dict[str, object]]


def _fingerprint(module: nn.Module) -> Fingerprint:
    parameters = dict(module.named_parameters())
    modules = dict(module.named_modules())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "values": {n: t.detach().flatten().tolist() for n, t in module.state_dict().items()},
        "tensors": {n: id(t) for n, t in module.state_dict(keep_vars=True).items()},
        "gradients": {
            n: None if p.grad is None else p.grad.flatten().tolist() for n, p in parameters.items()
        },
        "trained": {n: p.requires_grad for n, p in parameters.items()},
        "modes": {n: m.training for n, m in modules.items()},
        "hooks": {n: [len(getattr(m, hook)) for hook in hooks] for n, m in modules.items()},
    }


@pytest.fixture(scope="session")
def untouched() -> Callable[[nn.Module], AbstractContextManager[None]]:
    """`with untouched(module)`: all of the module is afterwards as it was, also on an error."""

    @contextmanager
    def watch(module: nn.Module) -> Iterator[None]:
        before = _fingerprint(module)
        try:
            yield
        finally:
            assert _fingerprint(module) == before

    return watch
