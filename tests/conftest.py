"""Shape checks at run time, and fixtures that several tests share."""

# ruff: noqa: E402

from jaxtyping import install_import_hook

# Before gifd is imported. An int counts as a float, as in mypy.
checker = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
install_import_hook("gifd", checker)

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from gifd.model import Model
from gifd.victims import ConvNet, LeNet

torch.set_num_threads(int(os.environ.get("GIFD_TEST_THREADS", "1")))
settings.register_profile("gifd", deadline=None, max_examples=25)
settings.load_profile("gifd")


def _seeded(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


@pytest.fixture(scope="session")
def seeded() -> Callable[[int, Callable[[], nn.Module]], nn.Module]:
    """The network that `make()` draws, in eval mode: `seeded(seed, make)`."""
    return _seeded


@pytest.fixture(scope="session")
def pictures() -> Callable[..., Tensor]:
    """Smooth random images (B, 3, H, W) in [0, 1]: `pictures(seed, batch, side)`."""

    def draw(seed: int, batch: int = 1, side: int = 8) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        coarse = torch.rand(batch, 3, 4, 4, generator=rng)
        return nn.functional.interpolate(coarse, size=(side, side), mode="bilinear").clamp(0, 1)

    return draw


@pytest.fixture
def smooth() -> Model:
    """A smooth victim in float64, for finite differences: sigmoids, 8 px, 4 classes."""
    module = _seeded(0, lambda: LeNet(4, size=8)).double()
    return Model(module=module, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))


@pytest.fixture
def victim() -> Model:
    """A victim with ReLUs and batch norm in float32: 16 px, 4 classes."""
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
    """A context that checks that a module is unchanged afterwards, also after an error."""

    @contextmanager
    def watch(module: nn.Module) -> Iterator[None]:
        before = _fingerprint(module)
        try:
            yield
        finally:
            assert _fingerprint(module) == before

    return watch
