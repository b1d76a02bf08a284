"""Peeling: values inside the victim from its gradient, and the images that have them."""

import dataclasses
import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gifd import catalog
from gifd.attacker.observe import observe
from gifd.attacks import Reconstruction, peel, ready
from gifd.errors import GifdError, UnexplainedError
from gifd.federation.client import Client
from gifd.federation.protocols import FedAvg
from gifd.leakage.peeling import Circuit
from gifd.leakage.peeling import peel as peeled
from gifd.leakage.peeling.activations import MaxPool, Rectifier, Sigmoid, Tanh, activation
from gifd.leakage.peeling.circuit import Read
from gifd.leakage.peeling.factors import factors
from gifd.leakage.peeling.layers import Convolution
from gifd.leakage.peeling.mixtures import separation
from gifd.leakage.peeling.system import System
from gifd.model import Model
from gifd.search import Inside, Progress, dead_leaves
from gifd.search.decoder import Decoder
from gifd.victims import ConvNet
from test_attacks import STRENGTHS

seeds = st.integers(0, 2**31)


class Narrowing(nn.Module):
    """Narrow at the end: 4 x 4 positions of 48 channels at 16 px, with a shortcut."""

    def __init__(self, activate: nn.Module | None = None) -> None:
        super().__init__()
        self.activate = activate or nn.ReLU()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.first, self.norm = nn.Conv2d(16, 48, 3, 2, 1, bias=False), nn.BatchNorm2d(48)
        self.second = nn.Conv2d(48, 48, 3, 2, 1)
        self.third = nn.Conv2d(48, 48, 3, 1, 1)
        self.head = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activate(self.norm(self.first(self.activate(self.stem(x)))))
        x = self.activate(self.second(x))
        x = self.activate(x + self.third(x))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Bottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 and 1x1 beside a shortcut, so the 3x3 one has not all behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 24, 3, 2, 1), nn.Conv2d(24, 48, 3, 2, 1)
        self.narrow, self.conv = nn.Conv2d(48, 32, 1), nn.Conv2d(32, 32, 3, 1, 1)
        self.wide, self.head = nn.Conv2d(32, 48, 1), nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.down(F.relu(self.stem(x))))
        h = F.relu(self.conv(F.relu(self.narrow(x))))
        logits: Tensor = self.head(F.relu(x + self.wide(h)).mean((2, 3)))
        return logits


def narrowing(seed: int = 0, dtype: torch.dtype = torch.float64, **options: nn.Module) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = Narrowing(**options).eval().to(dtype)
    return Model(module=module, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))


@pytest.fixture
def victim() -> Model:
    """In float64, so that no sign depends on the processor."""
    return narrowing()


def test_each_layer_that_is_solved_is_told(victim: Model) -> None:
    images = dead_leaves(1, (3, 16, 16), torch.Generator().manual_seed(1)).double()
    told: list[Progress] = []
    upload, _ = Client(model=victim).step(images, torch.tensor([2]))
    peel().with_evaluations(8)(observe(upload), callback=told.append)
    begun = [now for now in told if now.doing]
    assert begun[0].doing.startswith("looks for a layer")
    layers = [now.doing for now in begun if now.doing.startswith("input of ")]
    assert len(set(layers)) >= 2
    assert {layer.split()[2] for layer in layers} <= set(victim.parameters)
    assert any(now.doing.startswith("image ") for now in begun)
    done = [now.evaluations for now in told]
    assert done == sorted(done)
    assert done[-1] <= told[-1].evaluations_planned
    assert (told[-1].doing, told[-1].step) == ("", 1)


FOUND = 20
"""dB: a search that is not told what is inside ends near 12. How far beyond 20 the last descent
comes within its steps depends on the processor's rounding."""


def psnr(found: Tensor, truth: Tensor) -> list[float]:
    errors = (found - truth).square().flatten(1).mean(1)
    return [-10 * math.log10(float(error)) for error in errors]


def leaves(seed: int, batch: int = 1, side: int = 16) -> Tensor:
    return dead_leaves(batch, (3, side, side), torch.Generator().manual_seed(seed), shapes=20)


# -- layers as equations ---------------------------------------------------------------------

geometries = st.builds(
    Convolution,
    weight=st.just("w"),
    bias=st.none(),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 1)),
    dilation=st.tuples(st.integers(1, 2), st.just(1)),
)


@given(layer=geometries, seed=seeds)
def test_the_gradient_of_a_convolution_is_linear_in_its_input(
    layer: Convolution, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    fed = torch.randn(2, 3, 9, 8, generator=rng, dtype=torch.float64)
    weight = torch.randn(5, 3, *layer.kernel, generator=rng, dtype=torch.float64).requires_grad_()
    out = F.conv2d(fed, weight, None, layer.stride, layer.padding, layer.dilation)
    slopes = torch.randn(out.shape, generator=rng, dtype=torch.float64)
    (expected,) = torch.autograd.grad(out, weight, slopes)
    torch.testing.assert_close(layer.gradient(fed, slopes), expected)
    matrix, values = layer.equations(slopes, expected, fed)
    torch.testing.assert_close(matrix @ layer.rows(fed), values)
    assert torch.equal(layer.from_rows(layer.rows(fed), fed), fed)
    assert layer.output_size(fed.shape[-2:]) == out.shape[-2:]


@given(seed=seeds, side=st.tuples(st.integers(2, 5), st.integers(2, 5)), batch=st.integers(1, 2))
def test_a_convolution_shows_its_input_and_its_slopes(
    seed: int, side: tuple[int, int], batch: int
) -> None:
    """Up to a mixture of the images, from the gradient of its weight alone."""
    rng = torch.Generator().manual_seed(seed)
    layer = Convolution(
        weight="w", bias=None, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1)
    )
    fed, slopes = (
        torch.randn(batch, 60, *side, generator=rng, dtype=torch.float64).relu() for _ in range(2)
    )
    found = factors(layer.gradient(fed, slopes), layer, side, batch)
    assert found is not None
    mixed = found[1].flatten(1)
    mixture = torch.linalg.lstsq(mixed.T, fed.flatten(1).T).solution
    torch.testing.assert_close(mixed.T @ mixture, fed.flatten(1).T, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        layer.gradient(found[1], found[0]), layer.gradient(fed, slopes), rtol=1e-6, atol=1e-6
    )


def test_noise_hides_the_factors() -> None:
    rng = torch.Generator().manual_seed(0)
    layer = Convolution(
        weight="w", bias=None, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1)
    )
    fed, slopes = (
        torch.randn(1, 60, 4, 4, generator=rng, dtype=torch.float64).relu() for _ in range(2)
    )
    gradient = layer.gradient(fed, slopes)
    noise = torch.randn(gradient.shape, generator=rng, dtype=torch.float64)
    assert factors(gradient + noise * gradient.std(), layer, (4, 4), 1) is None
    assert factors(gradient, layer, (4, 4), 4) is None, "more positions than channels"


@given(seed=seeds, batch=st.integers(1, 5))
def test_images_are_separated_by_their_zeros(seed: int, batch: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    truth = torch.randn(batch, 3000, generator=rng, dtype=torch.float64).relu()
    mixture = torch.randn(batch, batch, generator=rng, dtype=torch.float64)
    found = separation(mixture @ truth, rng)
    assert found is not None
    alike = torch.cosine_similarity((found @ mixture @ truth)[:, None], truth[None], dim=2)
    assert sorted(alike.argmax(1).tolist()) == list(range(batch))
    assert float(alike.amax(1).min()) > 1 - 1e-9


def test_what_has_no_zeros_is_not_separated() -> None:
    rng = torch.Generator().manual_seed(0)
    assert separation(torch.randn(3, 2000, generator=rng, dtype=torch.float64), rng) is None


# -- activations -------------------------------------------------------------------------------

KINDS = [
    (Rectifier(), F.relu),
    (Rectifier(ceiling=6.0), F.relu6),
    (Rectifier(leak=0.1), lambda x: F.leaky_relu(x, 0.1)),
    (Sigmoid(), torch.sigmoid),
    (Tanh(), torch.tanh),
    (
        MaxPool(kernel=2, stride=2, padding=0, dilation=1, ceil=False),
        lambda x: F.max_pool2d(x, 2),
    ),
]


@pytest.mark.parametrize(("kind", "function"), KINDS)
def test_a_known_activation_has_its_value_and_derivative(
    kind: Rectifier, function: Callable[[Tensor], Tensor]
) -> None:
    rng = torch.Generator().manual_seed(0)
    before = (4 * torch.randn(2, 3, 4, 4, generator=rng, dtype=torch.float64)).requires_grad_()
    after = function(before)
    torch.testing.assert_close(kind(before), after)
    torch.testing.assert_close(kind.cleaned(after.detach()), after.detach())
    assert not bool(kind.away(before, after.detach()).any())
    other = (before.detach() + 1).requires_grad_()
    known = kind.known(other, after.detach())
    torch.testing.assert_close(known, after)
    if isinstance(kind, MaxPool):
        return  # its derivative stays that of the other
    (expected,) = torch.autograd.grad(after.sum(), before)
    (found,) = torch.autograd.grad(known.sum(), other)
    torch.testing.assert_close(found, expected)
    assert bool((kind.away(other, after.detach()).abs() > 0).any())


def test_activations_are_recognised_as_modules_and_functions() -> None:
    modules = (
        nn.ReLU(inplace=True),
        nn.ReLU6(),
        nn.LeakyReLU(0.2),
        nn.Hardtanh(0, 3),
        nn.Sigmoid(),
    )
    seen: list[object] = []
    for module in (*modules, nn.Tanh(), nn.MaxPool2d(2), nn.GELU(), nn.Hardtanh()):
        model = Model(module=nn.Sequential(nn.Conv2d(3, 4, 1), module))
        made, _ = Circuit(model).run(torch.rand(1, 3, 4, 4, dtype=torch.float64), {})
        seen.append(made.applied[0].kind if made.applied else None)
    assert seen == [
        Rectifier(),
        Rectifier(ceiling=6.0),
        Rectifier(leak=0.2),
        Rectifier(ceiling=3.0),
        Sigmoid(),
        Tanh(),
        MaxPool(kernel=2, stride=2, padding=0, dilation=1, ceil=False),
        None,
        None,
    ]
    assert activation(torch.exp, (), {}) is None


# -- the recursion -----------------------------------------------------------------------------


@pytest.mark.parametrize("activate", [nn.ReLU(), nn.LeakyReLU(0.1), nn.Tanh()])
def test_what_is_known_inside_is_true(activate: nn.Module) -> None:
    model = narrowing(dtype=torch.float64, activate=activate)
    images = leaves(1).double()
    upload, _ = Client(model=model).step(images, torch.tensor([2]))
    found = peeled(observe(upload), torch.tensor([2]))
    truth, _ = Circuit(model).run(images.requires_grad_(), {})
    assert len(found.known) > 1
    assert found.depth in model.parameters
    for number, value in found.known.items():
        torch.testing.assert_close(value, truth.applied[number].after, rtol=1e-6, atol=1e-8)
    assert found.frontier
    for equation in found.left:
        fed = next(r.fed for r in truth.reads if r.layer == equation.layer)
        away = equation.layer.gradient(fed.detach(), equation.slopes) - equation.gradient
        assert float(away.norm() / equation.gradient.norm()) < 1e-2, (
            "but for a sign of a tiny value"
        )


def test_missing_slopes_are_found_among_doubtful_ones() -> None:
    rng = torch.Generator().manual_seed(3)
    layer = Convolution(
        weight="w", bias=None, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1)
    )
    fed, slopes = (torch.randn(2, 12, 6, 6, generator=rng, dtype=torch.float64) for _ in range(2))
    gradient = {"w": layer.gradient(fed, slopes)}
    places = torch.tensor([[0, 3, 2, 2], [1, 3, 2, 2], [1, 7, 0, 5], [0, 9, 1, 1]])
    wrong = slopes.clone()
    index = tuple(places.T)
    wrong[index] = torch.where(torch.tensor([True, False, True, False]), 0, wrong[index])
    result = torch.zeros(2, 12, 6, 6, dtype=torch.float64)
    system = System.of([Read(layer, fed, result, 0)], [wrong], gradient)
    assert system is not None
    assert system.away > 1e-4
    missing = system.missing(layer, places, slopes[index])
    assert missing.round().tolist() == [1, 0, 1, 0]
    doubt = torch.ones_like(wrong, dtype=torch.bool)
    suspects = system.suspects(layer, slopes, doubt, 40).tolist()  # of 864
    assert [0, 3, 2, 2] in suspects
    assert [1, 7, 0, 5] in suspects
    doubt[index] = False
    assert [0, 3, 2, 2] not in system.suspects(layer, slopes, doubt, 864).tolist()
    right = System.of([Read(layer, fed, result, 0)], [slopes], gradient)
    assert right is not None
    assert right.away < 1e-12
    torch.testing.assert_close(right.fed, fed)


# -- from activations to images ------------------------------------------------------------------


def test_dead_leaves_are_images_drawn_by_their_generator() -> None:
    one, same, other = (leaves(seed, batch=3) for seed in (1, 1, 2))
    assert one.shape == (3, 3, 16, 16)
    assert 0 <= float(one.min()) < float(one.max()) <= 1
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@given(seed=seeds, spatial=st.booleans())
def test_an_affine_activation_is_decoded_exactly(seed: int, spatial: bool) -> None:
    """With more images than numbers, and cells that are determined by their position."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand(200, 2, 4, 4, generator=rng, dtype=torch.float64)
    weight = torch.randn(40, 2, 2, 2, generator=rng, dtype=torch.float64)
    mixing = torch.randn(32, 60, generator=rng, dtype=torch.float64)

    def activations(shown: Tensor) -> Tensor:
        if spatial:
            return F.conv2d(shown, weight, stride=2) + 0.3
        return shown.flatten(1) @ mixing + 0.3

    decoder = Decoder.fit(images[:190], activations)
    torch.testing.assert_close(decoder(activations(images[190:])), images[190:], rtol=0, atol=1e-3)


# -- the attack ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_one_image_is_found_exactly(seed: int) -> None:
    images = leaves(10 + seed)
    upload, _ = Client(model=narrowing(seed, torch.float32)).step(images, torch.tensor([1]))
    found = peel()(observe(upload))
    assert found.labels.tolist() == [1]
    assert found.label_source == "inferred"
    assert min(psnr(found.images, images)) > FOUND
    assert found.distance < 1e-2


def test_a_value_is_found_one_layer_before_a_layer_that_shows_its_input(
    seeded: Callable[..., nn.Module],
) -> None:
    model, images = Model(module=seeded(0, Bottleneck).double()), leaves(10)
    upload, _ = Client(model=model).step(images, torch.tensor([1]))
    found = peeled(observe(upload), torch.tensor([1]))
    truth, _ = Circuit(model).run(images.double(), {})
    assert len(found.known) > 1
    for number, value in found.known.items():
        torch.testing.assert_close(value, truth.applied[number].after, rtol=1e-3, atol=1e-4)
    assert min(psnr(peel()(observe(upload)).images, images)) > FOUND


def test_a_batch_is_taken_apart(victim: Model) -> None:
    images, labels = leaves(4, batch=2), torch.tensor([3, 1])
    upload, _ = Client(model=victim, grant_labels=True).step(images, labels)
    found = peel()(observe(upload))
    assert found.labels.tolist() == [3, 1]
    assert min(psnr(found.images, images)) > FOUND, "in the order of their labels"


def test_a_scale_does_not_hide(victim: Model) -> None:
    """One local step of FedAvg, and clipping."""
    images = leaves(10)
    upload, _ = Client(model=victim, protocol=FedAvg(steps=1, lr=0.1)).step(
        images, torch.tensor([1])
    )
    assert min(psnr(peel()(observe(upload)).images, images)) > FOUND
    clipped = Client(model=victim, defenses=(catalog.defense("clip:norm=0.01"),))
    for attacker in ("static", "adaptive"):
        upload, _ = clipped.step(images, torch.tensor([1]))
        observation = observe(upload, attacker=attacker, defenses=clipped.defenses)
        assert min(psnr(peel()(observation).images, images)) > FOUND


EXPLAINED = ("clip", "soteria", "ats", "censor", "aggregate", "hide")
"""These scale the gradient, hide parts of it, or send the gradient of other images."""


@pytest.mark.parametrize("defence", list(catalog.DEFENSES))
def test_behind_every_defence_it_is_exact_or_says_no(defence: str, victim: Model) -> None:
    images = leaves(10)
    strength = "aggregate:clients=1" if defence == "aggregate" else STRENGTHS[defence]
    client = Client(model=victim, defenses=(catalog.defense(strength),), grant_labels=True)
    upload, _ = client.step(images, torch.tensor([1]))
    observation = observe(upload, defenses=client.defenses)
    if defence not in EXPLAINED:
        with pytest.raises(UnexplainedError, match="use another attack"):
            peel()(observation)
        return
    found = peel()(observation)
    if defence not in ("ats", "censor"):
        assert min(psnr(found.images, images)) > FOUND
        assert found.distance < 0.01


@pytest.mark.parametrize(
    "module",
    [
        lambda: ConvNet(4, width=4),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 4)),
        lambda: Narrowing(nn.GELU()),
    ],
    ids=["strided", "linear", "gelu"],
)
def test_victims_that_show_nothing_are_refused(
    module: Callable[[], nn.Module], seeded: Callable[..., nn.Module]
) -> None:
    upload, _ = Client(model=Model(module=seeded(0, module))).step(leaves(10), torch.tensor([1]))
    with pytest.raises(UnexplainedError, match="use another attack"):
        peel()(observe(upload))


class Odd(nn.Module):
    """Like `Narrowing`, with one oddity."""

    def __init__(self, oddity: str) -> None:
        super().__init__()
        self.oddity = oddity
        self.stem, self.down = nn.Conv2d(3, 24, 3, 2, 1), nn.Conv2d(24, 48, 3, 2, 1)
        same: str | int = "same" if oddity == "padding" else 1
        self.conv, self.head = nn.Conv2d(48, 48, 3, 1, same), nn.Linear(48, 4)
        self.more = nn.Linear(48, 48)
        self.register_buffer("fixed", torch.ones(48))
        self.blur = torch.full((48, 1, 1, 1), 0.5)
        if oddity == "shared":
            self.twice = nn.Conv2d(48, 48, 3, 1, 1)
            self.twice.weight = self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.down(F.relu(self.stem(x))))
        match self.oddity:
            case "channels last":
                x = F.relu(self.more(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
            case "transposed":
                x = x.transpose(2, 3)
            case "constant":
                x = x * self.more(self.fixed).view(-1, 1, 1)
            case "own kernel":
                x = F.conv2d(x, self.blur, groups=48)
        h = self.conv(x)
        if self.oddity == "in place":
            h.mul_(0.3)
        h = F.relu_(h) if self.oddity == "relu_" else F.relu(h)
        if self.oddity == "discarded":
            h = self.conv(x)
            F.relu_(h)
        if self.oddity == "shared":
            h = F.relu(self.twice(h))
        if self.oddity == "one by one":
            h = torch.cat([F.relu(self.conv(each[None])) for each in x])
        logits: Tensor = self.head(h.mean((2, 3)))
        return logits


ODDITIES = {
    "padding": True,
    "relu_": True,
    "in place": True,
    "transposed": False,
    "channels last": False,
    "constant": False,
    "own kernel": False,
    "discarded": False,
    "shared": False,
    "one by one": False,
}
"""Whether the images must be found; otherwise one line may refuse them."""


@pytest.mark.parametrize("oddity", list(ODDITIES))
def test_odd_victims_are_inverted_or_refused_in_one_line(
    oddity: str, seeded: Callable[..., nn.Module]
) -> None:
    dtype = torch.float32 if oddity == "own kernel" else torch.float64
    model = Model(module=seeded(0, lambda: Odd(oddity)).to(dtype))
    images = leaves(10, batch=2)
    client = Client(model=model, grant_labels=True)
    observation = observe(client.step(images, torch.tensor([1, 2]))[0])
    try:
        found = peel()(observation)
    except GifdError as error:
        refused = str(error)
    else:
        assert min(psnr(found.images, images)) > FOUND, "never another image without a word"
        return
    assert not ODDITIES[oddity], refused
    assert "\n" not in refused


def test_a_loss_that_takes_no_float64_is_one_line() -> None:
    loss = nn.CrossEntropyLoss(weight=torch.ones(4))
    model = Model(module=narrowing(0, torch.float32).module, loss=loss)
    observation = observe(Client(model=model).step(leaves(10), torch.tensor([1]))[0])
    with pytest.raises(GifdError, match="a loss that takes float64"):
        peel()(observation)


def test_several_local_steps_are_refused(victim: Model) -> None:
    client = Client(model=victim, protocol=FedAvg(steps=3, lr=0.1))
    upload, _ = client.step(leaves(10), torch.tensor([1]))
    with pytest.raises(UnexplainedError):
        peel()(observe(upload))


def test_it_is_deterministic_and_leaves_all_alone(
    victim: Model, untouched: Callable[[nn.Module], AbstractContextManager[None]]
) -> None:
    observation = observe(Client(model=victim).step(leaves(10), torch.tensor([1]))[0])
    attack = peel().with_evaluations(20)
    randomness = torch.get_rng_state()
    first, *others = (peeled(observation, torch.tensor([1])).known for _ in range(3))
    assert all(torch.equal(first[number], other[number]) for other in others for number in first)
    with untouched(victim.module):
        one, two, other = (attack(observation, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), randomness)
    assert torch.equal(one.images, two.images)
    assert not torch.equal(one.images, other.images)
    assert one.evaluations == attack.planned_evaluations == 20


def test_several_at_once_are_those_of_one_by_one(victim: Model) -> None:
    client = Client(model=victim)
    observations = [
        observe(client.step(leaves(seed), torch.tensor([seed % 4]))[0]) for seed in (10, 11)
    ]
    attack = peel().with_evaluations(20)
    apart = [attack(each, seed=seed) for seed, each in enumerate(observations)]
    together = attack.many(observations, seeds=[0, 1], batched=True, at_once=2)
    for one, other in zip(apart, together, strict=True):
        assert isinstance(other, Reconstruction)
        torch.testing.assert_close(one.images, other.images)


def test_a_refusal_costs_no_other_observation(victim: Model) -> None:
    noisy = Client(model=victim, defenses=(catalog.defense("noise:std=0.01"),))
    plain = Client(model=victim)
    observations = [
        observe(plain.step(leaves(10), torch.tensor([1]))[0]),
        observe(noisy.step(leaves(11), torch.tensor([1]))[0], attacker="static"),
    ]
    attack = peel().with_evaluations(20)
    for at_once in (1, 2):
        found = attack.many(observations, seeds=[0, 0], at_once=at_once)
        assert isinstance(found[0], Reconstruction)
        assert isinstance(found[1], UnexplainedError)


def test_a_labelling_that_explains_nothing_costs_no_other(
    victim: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = leaves(10)
    observation = observe(Client(model=victim).step(images, torch.tensor([1]))[0])
    guesses = torch.tensor([[0], [1], [2]])
    monkeypatch.setattr(ready, "label_hypotheses", lambda *_, most: (guesses[:most], "estimated"))
    found = peel(restarts=3)(observation)
    assert found.labels.tolist() == [1]
    assert min(psnr(found.images, images)) > FOUND
    guesses[1] = 3
    with pytest.raises(UnexplainedError, match="the labels"):
        peel(restarts=3)(observation)


def test_budget_is_shared_by_the_decoder_and_the_steps() -> None:
    (phase,) = peel().phases
    assert isinstance(phase.begin, Inside)
    assert phase.cost == 161
    assert (phase.begin.leaves, phase.begin.steps) == (300, 390)
    small = Inside(evaluations=20)
    assert (small.leaves, small.steps) == (100, 30)
    assert dataclasses.replace(small, evaluations=1).steps == 3
