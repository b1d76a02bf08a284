"""Protocols, each compared with a plain PyTorch loop."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gifd.attacker.observe import observe
from gifd.errors import InputError, ModelError
from gifd.federation.client import Client
from gifd.federation.defenses import DPSGD
from gifd.federation.optimizers import SGD, Adam, LocalOptimizer
from gifd.federation.protocols import FedAvg, FedSGD, Protocol
from gifd.leakage.labels import label_hypotheses
from gifd.model import Model
from gifd.updates import Update
from gifd.victims import ConvNet

pytestmark = pytest.mark.numerical

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
LABELS = torch.tensor([0, 3, 1, 1])


def replay(protocol: Protocol, model: Model, images: Tensor, labels: Tensor) -> Update:
    return protocol(model, model.parameters, model.buffers, images, labels)


def normalized(images: Tensor) -> Tensor:
    mean, std = images.new_tensor(MEAN)[:, None, None], images.new_tensor(STD)[:, None, None]
    return (images - mean) / std


def by_autograd(module: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    loss = F.cross_entropy(module(normalized(images)), labels)
    named = dict(module.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def trained(
    module: nn.Module, images: Tensor, labels: Tensor, protocol: FedAvg
) -> dict[str, Tensor]:
    """A client's local training as a usual PyTorch loop: the change of its weights."""
    local = copy.deepcopy(module)
    moving = [p for p in local.parameters() if p.requires_grad]
    rule, started = protocol.optimizer, [p.detach().clone() for p in moving]
    optimizer: torch.optim.Optimizer
    if isinstance(rule, SGD):
        optimizer = torch.optim.SGD(
            moving,
            lr=1.0,
            momentum=rule.momentum,
            dampening=rule.dampening,
            weight_decay=rule.weight_decay,
            nesterov=rule.nesterov,
        )
    else:
        assert isinstance(rule, Adam)
        kind = torch.optim.AdamW if rule.decoupled else torch.optim.Adam
        betas, decay = (rule.beta1, rule.beta2), rule.weight_decay
        optimizer = kind(moving, lr=1.0, betas=betas, eps=rule.eps, weight_decay=decay)
    rates = protocol.lr if isinstance(protocol.lr, tuple) else [protocol.lr] * protocol.steps
    for own, lr in zip(protocol.batches(len(images)), rates, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        loss = F.cross_entropy(local(normalized(images[own])), labels[own])
        away = [(p - p0).square().sum() for p, p0 in zip(moving, started, strict=True)]
        torch.autograd.backward(loss + protocol.proximal / 2 * torch.stack(away).sum())
        if protocol.clip is not None:
            nn.utils.clip_grad_norm_(moving, protocol.clip)
        optimizer.step()
    start = dict(module.named_parameters())
    return {
        name: (p - start[name]).detach() for name, p in local.named_parameters() if p.requires_grad
    }


def same(update: Update, expected: dict[str, Tensor], atol: float = 1e-14) -> bool:
    return list(update) == list(expected) and all(
        torch.allclose(update[name], expected[name], rtol=1e-9, atol=atol) for name in expected
    )


@pytest.mark.parametrize("batch", [1, 4])
def test_fedsgd_is_the_gradient(smooth: Model, pictures: Callable[..., Tensor], batch: int) -> None:
    images, labels = pictures(1, batch).double(), LABELS[:batch]
    update = replay(FedSGD(), smooth, images, labels)
    assert same(update, by_autograd(smooth.module, images, labels))
    assert FedSGD().as_gradient(update, smooth.parameters) is update


def test_fedsgd_takes_probabilities_for_labels(
    smooth: Model, pictures: Callable[..., Tensor]
) -> None:
    images = pictures(1, 4).double()
    soft = F.one_hot(LABELS, 4).double()
    assert same(replay(FedSGD(), smooth, images, soft), by_autograd(smooth.module, images, LABELS))


@given(st.integers(0, 10**6), st.floats(1e-4, 1.0), st.floats(0, 0.99))
def test_one_step_of_fedavg_is_a_scaled_gradient(seed: int, lr: float, momentum: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(16, 3))
    model = Model(module=module.double())
    images = torch.rand(2, 3, 4, 4, generator=rng).double()
    labels = torch.randint(3, (2,), generator=rng)
    protocol = FedAvg(steps=1, lr=lr, optimizer=SGD(momentum=momentum))
    gradient = replay(FedSGD(), model, images, labels)
    update = replay(protocol, model, images, labels)
    assert same(update, dict(gradient * -lr))
    assert same(protocol.as_gradient(update, model.parameters), dict(gradient), atol=1e-14 / lr)


# -- clients of torch.optim ------------------------------------------------------------------

OPTIMIZERS: list[LocalOptimizer] = [
    SGD(),
    SGD(momentum=0.9),
    SGD(momentum=0.9, nesterov=True, weight_decay=0.01),
    SGD(momentum=0.8, dampening=0.3),
    SGD(weight_decay=0.1),
    Adam(),
    Adam(beta1=0.5, beta2=0.9, eps=1e-3, weight_decay=0.01),
    Adam(weight_decay=0.1, decoupled=True),
]
COURSES: dict[str, Callable[[LocalOptimizer], FedAvg]] = {
    "one step": lambda rule: FedAvg(steps=1, lr=0.05, optimizer=rule),
    "whole batches": lambda rule: FedAvg(steps=3, lr=0.05, optimizer=rule),
    "two epochs": lambda rule: FedAvg(steps=4, lr=0.05, batch_size=2, optimizer=rule),
    "a ragged last batch": lambda rule: FedAvg(steps=4, lr=0.05, batch_size=3, optimizer=rule),
    "shuffled": lambda rule: FedAvg(steps=5, lr=0.05, batch_size=1, shuffle=7, optimizer=rule),
    "a schedule": lambda rule: FedAvg(
        steps=4, lr=(0.05, 0.02, 0.1, 0.001), batch_size=2, optimizer=rule
    ),
    "clipped": lambda rule: FedAvg(steps=3, lr=0.05, batch_size=3, clip=0.2, optimizer=rule),
    "FedProx": lambda rule: FedAvg(steps=3, lr=0.05, proximal=0.5, optimizer=rule),
}


class Normed(nn.Module):
    """A small network with batch norms, of smooth operations, in float64.

    It has no bias in front of a batch norm: in training mode its gradient is 0 but for rounding,
    which Adam would enlarge.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(4),
                nn.Softplus(),
            )
            self.head = nn.Sequential(
                nn.Flatten(),
                nn.Linear(64, 6, bias=False),
                nn.BatchNorm1d(6),
                nn.Tanh(),
                nn.Linear(6, 4),
            )
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))  # type: ignore[no-any-return]


def evaluating() -> nn.Module:
    return Normed(0).eval()


def training() -> nn.Module:
    return Normed(1).train()


def frozen_body() -> nn.Module:
    module = Normed(2).eval()
    module.body.requires_grad_(False)
    return module


MODES = [evaluating, training, frozen_body]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("course", COURSES)
@pytest.mark.parametrize("rule", OPTIMIZERS, ids=repr)
def test_fedavg_is_a_client_of_torch_optim(
    rule: LocalOptimizer, course: str, mode: Callable[[], nn.Module]
) -> None:
    protocol = COURSES[course](rule)
    if mode is training and protocol.batch_size in (1, 3):
        pytest.skip("a batch norm in training mode refuses a batch of one")
    module = mode()
    model = Model(module=module, mean=MEAN, std=STD)
    rng = torch.Generator().manual_seed(3)
    images = torch.rand(4, 3, 8, 8, generator=rng, dtype=torch.float64)
    expected = trained(module, images, LABELS, protocol)
    assert same(replay(protocol, model, images, LABELS), expected, atol=1e-8)
    assert max(float(tensor.abs().max()) for tensor in expected.values()) > 1e-4


@pytest.mark.parametrize("course", COURSES)
@pytest.mark.parametrize("rule", OPTIMIZERS, ids=repr)
def test_equal_gradients_are_read_from_the_update(rule: LocalOptimizer, course: str) -> None:
    """`as_gradient` inverts a course whose local gradients are all equal; Adam shows signs."""
    protocol = replace(COURSES[course](rule), clip=None)
    rng = torch.Generator().manual_seed(5)
    draw = {"a": (3, 2), "b": (5,)}
    theta = {n: torch.randn(s, generator=rng, dtype=torch.float64) for n, s in draw.items()}
    constant = Update({n: torch.randn_like(t) for n, t in theta.items()})
    protocol = replace(protocol, local=Constant(constant))
    images = torch.zeros(4, 3, 8, 8, dtype=torch.float64)
    update = protocol(Model(module=nn.Linear(1, 1)), theta, {}, images, LABELS)
    found = protocol.as_gradient(update, theta)
    if isinstance(rule, SGD):
        assert same(found, dict(constant), atol=1e-10)
        return
    assert isinstance(rule, Adam)
    if not rule.weight_decay and not protocol.proximal:
        assert same(found, {n: t.sign() for n, t in constant.items()}, atol=1e-2)
    elif rule.decoupled and not protocol.proximal:
        assert float(found.dot(constant.map(torch.sign))) > 0.9 * found.numel
    visited = protocol.visited(theta, update)
    assert len(visited) == protocol.steps
    for name, start in theta.items():
        assert torch.equal(visited[0][name], start)
        before = (start + update[name] - visited[-1][name]).norm() / update[name].norm()
        rates = protocol.lr if isinstance(protocol.lr, tuple) else (protocol.lr,) * protocol.steps
        assert float(before) == pytest.approx(rates[-1] / sum(rates))


class Constant(Protocol):
    """Always the same gradient."""

    def __init__(self, gradient: Update) -> None:
        self.gradient = gradient

    def __call__(
        self,
        model: Model,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        images: Tensor,
        labels: Tensor,
    ) -> Update:
        return self.gradient

    def as_gradient(self, update: Update, at: Mapping[str, Tensor]) -> Update:
        return update


@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 3), st.integers(0, 99))
def test_an_epoch_sees_every_image_once(images: int, size: int, epochs: int, seed: int) -> None:
    steps = FedAvg.steps_of(epochs, images, size)
    protocol = FedAvg(steps=steps, lr=0.1, batch_size=size, shuffle=seed)
    batches = protocol.batches(images)
    assert len(batches) == steps
    assert all(1 <= len(batch) <= size for batch in batches)
    seen = torch.cat(batches).view(epochs, images)
    assert torch.equal(seen.sort(1).values, torch.arange(images).expand(epochs, images))
    plain = torch.cat(replace(protocol, shuffle=None).batches(images)).view(epochs, images)
    assert torch.equal(plain, torch.arange(images).expand(epochs, images))


def test_noise_in_steps_of_adam_is_refused() -> None:
    noisy = DPSGD(noise=1.0).wrap(FedAvg(steps=2, lr=0.1, optimizer=Adam()), 0)
    with pytest.raises(InputError, match="noise in the local gradients of SGD, got it with Adam"):
        noisy.noise(2)


@pytest.mark.parametrize(
    "protocol",
    [
        FedSGD(),
        FedAvg(steps=3, lr=0.1, batch_size=1, optimizer=SGD(momentum=0.5)),
        FedAvg(steps=3, lr=0.1, clip=0.3, proximal=0.2, optimizer=Adam(eps=0.01)),
    ],
)
def test_an_update_is_differentiable_in_the_images(
    smooth: Model, pictures: Callable[..., Tensor], protocol: Protocol
) -> None:
    """The derivative of <update, v> along a direction, against central differences."""
    images, labels = pictures(1, 2).double(), LABELS[:2]
    rng = torch.Generator().manual_seed(7)
    v = Update(
        {
            name: torch.randn(p.shape, generator=rng, dtype=p.dtype)
            for name, p in smooth.parameters.items()
        }
    )

    def product(x: Tensor) -> Tensor:
        return replay(protocol, smooth, x, labels).dot(v)

    gradient = torch.func.grad(product)(images)
    for _ in range(3):
        direction = torch.randn(images.shape, generator=rng, dtype=torch.float64)
        step = 1e-5
        ahead, behind = product(images + step * direction), product(images - step * direction)
        slope = float(ahead - behind) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-7)


def test_a_replay_changes_neither_parameters_nor_images(
    smooth: Model, pictures: Callable[..., Tensor]
) -> None:
    images = pictures(1, 2).double()
    before = images.clone(), {name: p.clone() for name, p in smooth.parameters.items()}
    replay(FedAvg(steps=2, lr=0.1, optimizer=SGD(momentum=0.9)), smooth, images, LABELS[:2])
    assert torch.equal(images, before[0])
    assert all(torch.equal(p, before[1][name]) for name, p in smooth.parameters.items())


@pytest.mark.parametrize(
    "made",
    [
        lambda: FedAvg(steps=0, lr=0.1),
        lambda: FedAvg(steps=1, lr=0.0),
        lambda: FedAvg(steps=3, lr=(0.1, 0.2)),
        lambda: FedAvg(steps=1, lr=()),
        lambda: FedAvg(steps=1, lr=0.1, batch_size=0),
        lambda: FedAvg(steps=1, lr=0.1, clip=0.0),
        lambda: FedAvg(steps=1, lr=0.1, proximal=-1.0),
        lambda: SGD(momentum=1.0),
        lambda: SGD(nesterov=True),
        lambda: SGD(momentum=0.5, dampening=0.1, nesterov=True),
        lambda: SGD(weight_decay=-0.1),
        lambda: Adam(eps=0.0),
        lambda: Adam(beta1=1.0),
    ],
)
def test_a_protocol_nobody_can_run(made: Callable[[], object]) -> None:
    with pytest.raises(InputError, match="expected") as error:
        made()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "protocol",
    [
        FedSGD(),
        FedAvg(steps=2, lr=0.1, batch_size=4),
        FedAvg(steps=2, lr=(0.1, 0.2), optimizer=Adam(decoupled=True), shuffle=3, clip=1.0),
    ],
)
def test_its_words_rebuild_it(protocol: Protocol) -> None:
    names = {each.__name__: each for each in (FedSGD, FedAvg, SGD, Adam)}
    assert eval(repr(protocol), names) == protocol


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("protocol", [FedSGD(), FedAvg(steps=3, lr=0.1, batch_size=2)], ids=repr)
def test_mixed_precision_is_a_client_in_autocast(
    protocol: Protocol, dtype: torch.dtype, pictures: Callable[..., Tensor]
) -> None:
    """The same operations as under `torch.autocast`, so equal but for the order of sums."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = ConvNet(5, width=8).eval()
    images = pictures(3, 4, 16)
    model = Model(module=module, mean=MEAN, std=STD, autocast=dtype)
    local = copy.deepcopy(module)
    steps = protocol.batches(4) if isinstance(protocol, FedAvg) else [torch.arange(4)]
    for own in steps:
        with torch.autocast("cpu", dtype):
            loss = F.cross_entropy(local(normalized(images[own])), LABELS[own])
        slopes = torch.autograd.grad(loss, list(local.parameters()))
        with torch.no_grad():
            for parameter, slope in zip(local.parameters(), slopes, strict=True):
                parameter.sub_(0.1 * slope)
    start = dict(module.named_parameters())
    scale = -0.1 if protocol == FedSGD() else 1.0
    expected = Update({n: (p.detach() - start[n].detach()) for n, p in local.named_parameters()})
    update = replay(protocol, model, images, LABELS) * scale
    whole = replay(protocol, replace(model, autocast=None), images, LABELS) * scale
    error = float((update - expected).norm() / expected.norm())
    assert error < 4 * torch.finfo(dtype).eps
    assert error < float((whole - expected).norm() / expected.norm()), "and nearer than float32"
    start_image = images.clone().requires_grad_()
    away = (replay(protocol, model, start_image, LABELS) - update * 2.0).squares().sum()
    (slope,) = torch.autograd.grad(away, start_image)
    assert bool(slope.isfinite().all())
    assert float(slope.abs().max()) > 0


def test_the_label_of_a_client_in_mixed_precision_is_read(pictures: Callable[..., Tensor]) -> None:
    for seed in range(4):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = ConvNet(5, width=8).eval()
        model = Model(module=module, autocast=torch.bfloat16)
        upload, _ = Client(model=model).step(pictures(seed, 1, 16), torch.tensor([seed]))
        labels, source = label_hypotheses(observe(upload))
        assert (labels.tolist(), source) == ([[seed]], "inferred")


def test_another_precision_is_refused() -> None:
    with pytest.raises(ModelError, match=r"torch.bfloat16 or torch.float16, got torch.float64"):
        Model(module=nn.Linear(2, 2), autocast=torch.float64)
