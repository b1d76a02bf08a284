"""Defences: each against an independent reference, and its surrogate and guess against it."""

from __future__ import annotations

import copy
import dataclasses
import math
import random
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor, nn

from gifd.attacker.guess import guessed
from gifd.attacker.observation import Observation
from gifd.attacker.observe import Attacker, observe
from gifd.errors import InputError, ModelError
from gifd.federation.client import Client
from gifd.federation.defenses import (
    ATS,
    DPSGD,
    Aggregate,
    Censor,
    Clip,
    Defense,
    Hide,
    Laplace,
    Noise,
    Precode,
    Quantize,
    Soteria,
    Sparsify,
    check_order,
)
from gifd.federation.defenses.ats import apply, hybrid
from gifd.federation.defenses.ats import search as ats_search
from gifd.federation.defenses.quantize import RANDOM
from gifd.federation.defenses.soteria import sensitivities
from gifd.federation.defenses.transformations import TRANSFORMATIONS, transform
from gifd.federation.protocols import FedAvg, FedSGD, Protocol
from gifd.federation.upload import Upload
from gifd.leakage.representation import observed_representations
from gifd.model import Model
from gifd.updates import Update
from gifd.victims import ConvNet, LeNet

Pictures = Callable[..., Tensor]

DETERMINISTIC: list[Defense] = [
    Clip(norm=0.5),
    Clip(norm=0.1, per_layer=True),
    Sparsify(rate=0.9),
    Sparsify(rate=0.5, per_layer=True),
    Soteria(rate=0.8),
    Quantize(scheme="sign"),
    Quantize(scheme="int8"),
    Quantize(scheme="fp16"),
    Quantize(scheme="bf16"),
    DPSGD(noise=0.0, norm=0.7),
    Aggregate(clients=2),
    Hide(parts="head"),
    Hide(all_but="body.1+*.bias"),
    ATS(),
    ATS(policies="7-0+43-4", seed=3),
]


def network(classes: int = 7, width: int = 8) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ConvNet(classes, width=width).eval()


VICTIM = Model(module=network())


def images(seed: int, batch: int = 2, side: int = 16) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 5, 5, generator=rng)
    smooth = F.interpolate(coarse, size=(side, side), mode="bilinear")
    return smooth, torch.randint(7, (batch,), generator=rng)


def defended(
    *defenses: Defense,
    attacker: Attacker = "adaptive",
    protocol: Protocol | None = None,
    seed: int = 0,
    batch: int = 2,
    model: Model = VICTIM,
) -> Observation:
    client = Client(model=model, protocol=protocol or FedSGD(), defenses=defenses, seed=seed)
    upload, _ = client.step(*images(seed, batch))
    return observe(upload, attacker=attacker, defenses=defenses)


def bare(seed: int = 0, batch: int = 2, model: Model = VICTIM) -> Update:
    return Client(model=model).step(*images(seed, batch))[0].update


def off(observation: Observation, seed: int = 0, batch: int = 2) -> float:
    """The relative distance of the attacker's replay of the private batch from the update."""
    truth = observation.replay(*images(seed, batch))
    return float((truth - observation.update).norm() / observation.update.norm())


# -- the law ---------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [FedSGD(), FedAvg(steps=2, lr=0.1)], ids=repr)
@pytest.mark.parametrize("defense", DETERMINISTIC, ids=repr)
@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_replayed_of_the_truth_is_what_was_sent(
    defense: Defense, protocol: Protocol, seed: int
) -> None:
    observation = defended(defense, protocol=protocol, seed=seed)
    assert off(observation, seed) < 1e-5
    plain = Client(model=VICTIM, protocol=protocol).step(*images(seed))[0].update
    if not isinstance(defense, Aggregate) and protocol == FedSGD():
        assert float((plain - observation.update).norm()) > 0, "it does something"


@pytest.mark.parametrize("defense", DETERMINISTIC, ids=repr)
def test_the_belief_is_differentiable_in_the_images(defense: Defense) -> None:
    observation = defended(defense)
    start = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(5)).requires_grad_()
    replayed = observation.replay(start, images(0)[1])
    (slope,) = torch.autograd.grad((replayed - observation.update).squares().sum(), start)
    assert bool(torch.isfinite(slope).all())
    assert float(slope.abs().max()) > 0


def test_defences_compose_in_their_order() -> None:
    defenses = (DPSGD(noise=0.0, norm=0.5), Sparsify(rate=0.9), Quantize(scheme="bf16"))
    observation = defended(*defenses)
    assert off(observation) < 1e-2
    zeros = sum(int((t == 0).sum()) for t in observation.update.tensors)
    assert zeros / observation.update.numel == pytest.approx(0.9, abs=0.01)
    assert observation.ledger.defenses == tuple(map(repr, defenses))
    assert observation.ledger.attacker == "adaptive"


def test_zeros_that_noise_filled_are_replayed_by_size() -> None:
    observation = defended(Sparsify(rate=0.9), Noise(std=1e-3))
    assert all(bool((tensor != 0).all()) for tensor in observation.update.tensors)
    replayed = observation.replay(*images(0))
    zeros = sum(int((tensor == 0).sum()) for tensor in replayed.tensors)
    assert zeros / replayed.numel == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize(
    "defenses",
    [(Soteria(rate=0.5),), (Sparsify(rate=0.5),), (Soteria(rate=0.5), Sparsify(rate=0.5))],
    ids=repr,
)
def test_an_adaptive_attacker_knows_which_of_the_heads_numbers_are_shown(
    defenses: tuple[Defense, ...],
) -> None:
    label = images(0, 1, 32)[1]
    assert observed_representations(observed(attacker="adaptive"), label).shown is None
    observation = observed(*defenses, attacker="adaptive")
    seen = observed_representations(observation, label)
    row = observation.update[LARGE.head((3, 32, 32)).weight][label]
    assert seen.shown is not None
    assert torch.equal(seen.shown.expand_as(row) > 0, row != 0)
    assert 0.1 < float((row != 0).float().mean()) < 0.9


def test_what_is_no_defence_is_refused() -> None:
    wrong: Any = ("sparsify:rate=0.9",)
    with pytest.raises((InputError, TypeCheckError), match=r"defen[cs]es"):
        Client(model=VICTIM, defenses=wrong)
    upload = sent()
    with pytest.raises((InputError, TypeCheckError), match=r"defen[cs]es"):
        observe(upload, defenses=wrong)


@pytest.mark.parametrize("name", ["Adaptive", "told", "naive", ""])
def test_an_attacker_that_there_is_not_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="static, adaptive, estimated") as error:
        observe(sent(), attacker=name)
    assert "\n" not in str(error.value)


def test_what_is_no_upload_is_refused() -> None:
    wrong: Any = observed()
    with pytest.raises((InputError, TypeCheckError), match=r"[uU]pload"):
        observe(wrong)


def test_who_guesses_does_so_without_a_defence_too() -> None:
    observation = observed(attacker="estimated")
    assert observation.grants()["attacker"] == "estimated"
    assert observation.grants()["believed"] == []


def test_a_contradiction_is_one_line() -> None:
    for wrong, says in (
        ((Noise(std=1.0), Noise(std=2.0)), "each kind of defence once"),
        ((Clip(norm=1.0), DPSGD(noise=1.0)), "give it first"),
    ):
        with pytest.raises(InputError, match=says) as error:
            check_order(wrong)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Noise(std=0.0),
        lambda: Laplace(std=math.nan),
        lambda: Clip(norm=-1.0),
        lambda: Sparsify(rate=1.0),
        lambda: Soteria(rate=-0.1),
        lambda: Quantize(scheme="int4"),
        lambda: Quantize(scheme="qsgd", levels=0),
        lambda: DPSGD(noise=-1.0),
        lambda: Aggregate(clients=0),
        lambda: Censor(tries=0),
        lambda: Precode(width=0),
        lambda: ATS(policies="3-50"),
        lambda: ATS(policies="rotate"),
    ],
)
def test_a_strength_out_of_range_is_refused(make: Callable[[], Defense]) -> None:
    with pytest.raises(InputError, match="expected"):
        make()


# -- against independent references ------------------------------------------------------


@given(st.integers(0, 20), st.floats(0.01, 50.0))
@settings(max_examples=15)
def test_clipping_is_pytorchs(seed: int, norm: float) -> None:
    module = copy.deepcopy(VICTIM.module)
    for (name, parameter), gradient in zip(
        module.named_parameters(), bare(seed).tensors, strict=True
    ):
        assert name in VICTIM.parameters
        parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_(module.parameters(), norm)
    sent = defended(Clip(norm=norm), seed=seed).update
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(sent[name], parameter.grad)


@given(st.integers(0, 20), st.floats(0.0, 0.99), st.booleans())
@settings(max_examples=15)
def test_the_largest_entries_survive(seed: int, rate: float, per_layer: bool) -> None:
    """Compared with a numpy sort."""
    sent = defended(Sparsify(rate=rate, per_layer=per_layer), seed=seed).update
    plain = bare(seed)
    groups = [[name] for name in plain] if per_layer else [list(plain)]
    for names in groups:
        flat = np.concatenate([plain[name].numpy().ravel() for name in names])
        kept = np.concatenate([sent[name].numpy().ravel() for name in names])
        least = np.sort(np.abs(flat))[math.floor(rate * flat.size)]
        np.testing.assert_array_equal(kept, np.where(np.abs(flat) >= least, flat, 0))


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.8])
def test_soteria_is_a_slow_numpy_soteria(rate: float) -> None:
    """One backward pass per feature and image, then numpy."""
    pictures, labels = images(3)
    features = VICTIM.representations(pictures).shape[1]
    slow = np.zeros(features)
    for b in range(len(pictures)):
        for i in range(features):
            x = pictures[b : b + 1].clone().requires_grad_()
            fed = VICTIM.representations(x)
            (slope,) = torch.autograd.grad(fed[0, i], x)
            slow[i] += np.linalg.norm(slope.numpy().ravel()) / (float(fed[0, i].detach()) + 0.1)
    np.testing.assert_allclose(sensitivities(VICTIM, pictures).numpy(), slow, rtol=1e-4)
    sent = defended(Soteria(rate=rate), seed=3).update
    plain = bare(3)
    hidden = np.argsort(np.abs(slow), kind="stable")[: math.floor(rate * features)]
    head = VICTIM.head((3, 16, 16)).weight
    for name in plain:
        expected = plain[name].clone()
        if name == head:
            expected[:, torch.from_numpy(hidden)] = 0
        torch.testing.assert_close(sent[name], expected)
    assert len(labels) == 2


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_dpsgd_is_opacus() -> None:
    """The same clipped sum, from Opacus' hooks; no batch norm, which Opacus refuses."""
    from opacus import GradSampleModule

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = nn.Sequential(
            nn.Conv2d(3, 6, 5, 2), nn.GroupNorm(2, 6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 7)
        )
    pictures, labels = images(1, 5)
    module = GradSampleModule(copy.deepcopy(plain))
    F.cross_entropy(module(pictures), labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
    samples = [p.grad_sample for p in module.parameters()]
    lengths = torch.stack([g.flatten(1).norm(dim=1) for g in samples]).norm(dim=0)
    factors = (0.4 / (lengths + 1e-6)).clamp(max=1.0)
    assert float(factors.min()) < 1
    observation = defended(DPSGD(noise=0.0, norm=0.4), seed=1, batch=5, model=Model(module=plain))
    for sent, grads in zip(observation.update.tensors, samples, strict=True):
        expected = torch.einsum("b,b...->...", factors, grads) / 5
        torch.testing.assert_close(sent, expected, rtol=1e-4, atol=1e-6)


def test_dpsgd_adds_noise_of_its_size_in_every_step() -> None:
    client = Client(model=VICTIM, protocol=FedAvg(steps=4, lr=1.0), defenses=(DPSGD(noise=2.0),))
    pictures, labels = images(1, 4)
    zero = Client(model=VICTIM, protocol=FedAvg(steps=4, lr=1.0), defenses=(DPSGD(noise=0.0),))
    noise = client.step(pictures, labels)[0].update - zero.step(pictures, labels)[0].update
    spread = float(torch.cat([t.flatten() for t in noise.tensors]).std())
    assert spread == pytest.approx(2.0 / 4 * math.sqrt(4), rel=0.1)


@pytest.mark.filterwarnings("ignore:Optimal order")
@given(st.floats(0.5, 4.0), st.floats(1.05, 2.0), st.integers(1, 50))
@settings(max_examples=10, deadline=None)
def test_epsilon_falls_with_noise_and_is_opacus(noise: float, more: float, steps: int) -> None:
    from opacus.accountants import create_accountant

    def opacus(multiplier: float) -> float:
        accountant = create_accountant("rdp")
        for _ in range(steps):
            accountant.step(noise_multiplier=multiplier, sample_rate=0.01)
        return float(accountant.get_epsilon(1e-5, alphas=DPSGD.ORDERS))

    mine = DPSGD(noise=noise).epsilon(steps=steps, sample_rate=0.01)
    assert mine == pytest.approx(opacus(noise), rel=1e-9)
    assert DPSGD(noise=noise * more).epsilon(steps=steps, sample_rate=0.01) < mine
    assert DPSGD(noise=0.0).epsilon(steps=steps, sample_rate=0.01) == math.inf


def test_aggregation_is_the_gradient_of_the_union_and_no_client_alone() -> None:
    one = defended(Aggregate(clients=2), batch=4).update
    assert float((one - bare(batch=4)).norm()) < 1e-5
    local = FedAvg(steps=3, lr=0.2)
    pictures, labels = images(0, 4)
    parts = [
        Client(model=VICTIM, protocol=local).step(pictures[own], labels[own])[0].update
        for own in (slice(0, 2), slice(2, 4))
    ]
    both = defended(Aggregate(clients=2), protocol=local, batch=4).update
    assert float((both - (parts[0] + parts[1]) / 2).norm()) < 1e-5
    with pytest.raises(InputError, match="3 clients share alike"):
        defended(Aggregate(clients=3), batch=4)


@pytest.mark.parametrize("protocol", [FedSGD(), FedAvg(steps=3, lr=0.2)])
@pytest.mark.parametrize("swap", [False, True])
def test_each_aggregated_client_clips_its_own_local_gradients(
    protocol: Protocol, swap: bool
) -> None:
    aggregate, clipped = Aggregate(clients=2), DPSGD(noise=0.0, norm=0.3)
    pictures, labels = images(0, 4)
    parts = [
        Client(model=VICTIM, protocol=protocol, defenses=(clipped,))
        .step(pictures[own], labels[own])[0]
        .update
        for own in (slice(0, 2), slice(2, 4))
    ]
    order = (clipped, aggregate) if swap else (aggregate, clipped)
    client = Client(model=VICTIM, protocol=protocol, defenses=order)
    sent = client.step(pictures, labels)[0].update
    assert float((sent - (parts[0] + parts[1]) / 2).norm()) < 1e-5


def test_censor_sends_what_is_orthogonal_as_long_and_lowers_the_loss() -> None:
    pictures, labels = images(0)
    plain, sent = bare(), defended(Censor(tries=40, step=1e-2)).update
    for name, own in plain.items():
        cosine = F.cosine_similarity(own.flatten(), sent[name].flatten(), dim=0)
        assert abs(float(cosine)) < 1e-4 or own.numel() == 1
        assert float(sent[name].norm()) == pytest.approx(float(own.norm()), rel=1e-4)

    def loss(update: Update) -> float:
        theta = Update(dict(VICTIM.parameters)).add_scaled(update, -1e-2)
        return float(VICTIM.loss(VICTIM.logits(theta, VICTIM.buffers, pictures), labels))

    assert loss(sent) < loss(plain * 0.0)
    told = defended(Censor(tries=40, step=1e-2))
    assert off(told) < 1e-3, "made orthogonal to the truth it is what it was"


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_precode_is_the_gradient_of_both_terms(beta: float) -> None:
    """Cross-entropy through the bottleneck and its divergence, written out."""
    precode = Precode(width=5, beta=beta)
    model = precode.prepare(VICTIM, (3, 16, 16))
    pictures, labels = images(0)
    fed = VICTIM.representations(pictures).detach()
    named = {n: p.clone().requires_grad_() for n, p in model.parameters.items()}
    prefix = VICTIM.head((3, 16, 16)).weight.rpartition(".")[0]
    part = {n.removeprefix(f"{prefix}."): p for n, p in named.items() if n.startswith(prefix)}
    noise = torch.randn(2, 5, generator=torch.Generator().manual_seed(7000))
    mean, raw = F.linear(fed, part["0.encode.weight"], part["0.encode.bias"]).chunk(2, 1)
    std = F.softplus(raw)
    z = mean + noise * std
    decoded = F.linear(z, part["0.decode.weight"], part["0.decode.bias"])
    logits = F.linear(decoded, part["1.weight"], part["1.bias"])
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(mean, std), normal(0.0, 1.0))
    loss = F.cross_entropy(logits, labels) + beta * kl.sum(1).mean() / math.log(2)
    expected = torch.autograd.grad(loss, list(part.values()))
    client = Client(model=VICTIM, defenses=(precode,), seed=7)
    sent = client.step(pictures, labels)[0].update
    for name, gradient in zip(part, expected, strict=True):
        torch.testing.assert_close(sent[f"{prefix}.{name}"], gradient, rtol=1e-4, atol=1e-6)
    other = Client(model=VICTIM, defenses=(precode,), seed=8).step(pictures, labels)[0].update
    assert float((sent - other).norm()) > 1e-3


def test_precode_needs_a_linear_module() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(3, 12))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x.mean((2, 3)).repeat(1, 4), self.w)

    with pytest.raises(ModelError, match=r"torch.nn.Linear in the model for PRECODE"):
        Precode().prepare(Model(module=Bare()), (3, 16, 16))


@pytest.mark.parametrize("number", range(len(TRANSFORMATIONS)))
def test_a_transformation_is_pillows(number: int) -> None:
    name, step = TRANSFORMATIONS[number]
    rng = np.random.default_rng(number)
    coarse = torch.from_numpy(rng.integers(0, 256, (1, 3, 6, 6))).float()
    array = F.interpolate(coarse, (32, 32), mode="bilinear")[0].round().byte()
    picture = Image.fromarray(array.permute(1, 2, 0).numpy())
    got = transform(array.float() / 255, number, -1.0) * 255
    m = step / 9
    size = 32
    expected = {
        "invert": lambda: ImageOps.invert(picture),
        "contrast": lambda: ImageEnhance.Contrast(picture).enhance(1 - 0.5 * m),
        "color": lambda: ImageEnhance.Color(picture).enhance(1 - 0.5 * m),
        "brightness": lambda: ImageEnhance.Brightness(picture).enhance(1 - 0.5 * m),
        "sharpness": lambda: ImageEnhance.Sharpness(picture).enhance(1 - 0.5 * m),
        "autocontrast": lambda: ImageOps.autocontrast(picture),
        "equalize": lambda: ImageOps.equalize(picture),
        "posterize": lambda: ImageOps.posterize(picture, round(8 - 4 * m)),
        "solarize": lambda: ImageOps.solarize(picture, round(256 * (1 - m))),
        "rotate": lambda: picture.rotate(30 * m, Image.Resampling.BILINEAR),
        "shearY": lambda: picture.transform(
            (size, size),
            Image.Transform.AFFINE,
            (1, 0, 0, -0.3 * m, 1, 0.3 * m * size / 2),
            Image.Resampling.BILINEAR,
        ),
        "translateX": lambda: picture.transform(
            (size, size),
            Image.Transform.AFFINE,
            (1, 0, -150 / 331 * m * size, 0, 1, 0),
            Image.Resampling.BILINEAR,
        ),
        "translateY": lambda: picture.transform(
            (size, size),
            Image.Transform.AFFINE,
            (1, 0, 0, 0, 1, -150 / 331 * m * size),
            Image.Resampling.BILINEAR,
        ),
    }[name]()
    want = torch.from_numpy(np.asarray(expected).copy()).permute(2, 0, 1).float()
    away = (got - want).abs()
    inner = away[:, 3:-3, 3:-3]
    assert float(inner.median()) <= 2.5
    assert float(inner.quantile(0.9)) <= 4


def test_each_image_and_round_draws_its_policy() -> None:
    pictures = images(0, 1)[0].repeat(8, 1, 1, 1)
    ats = ATS(policies="0+8+43-18-18")
    changed = ats.transformed(pictures)
    assert len({tuple(image.flatten().tolist()) for image in changed}) > 2
    assert torch.equal(changed, ats.transformed(pictures))
    assert not torch.equal(changed, ats.drawn(5).transformed(pictures))
    assert Noise(std=1.0).drawn(5) == Noise(std=1.0)


def test_policies_are_searched_for() -> None:
    """The most private first, none below the accuracy asked for."""
    pictures, labels = images(0, 6)
    found = ats_search(
        VICTIM, VICTIM, pictures, labels, candidates=6, points=3, least_accuracy=-1e9
    )
    assert len(found) == 6
    assert all(-1 <= area <= 1 for scored in found for area in scored.privacy)
    scores = []
    for measure in (statistics.fmean, statistics.pvariance):
        values = [measure(scored.privacy) for scored in found]
        low, width = min(values), max(values) - min(values)
        assert width > 0
        scores.append([(value - low) / width for value in values])
    order = [0.7 * mean + 0.3 * spread for mean, spread in zip(*scores, strict=True)]
    assert order == sorted(order)
    draws = random.Random(0)  # the policies, and with them the images, are drawn again
    unlike = {}
    for _ in range(6):
        policy = tuple(draws.randrange(len(TRANSFORMATIONS)) for _ in range(3))
        x = torch.stack([apply(image, policy, draws) for image in pictures]).requires_grad_()
        (slopes,) = torch.autograd.grad(VICTIM.module(VICTIM.normalize(x)).sum(), x)
        alike = np.corrcoef(slopes.flatten(1).double().numpy())
        unlike[policy] = -sum(
            math.log(v + 1e-5) + 1 / (v + 1e-5) for v in np.linalg.eigvalsh(alike)
        )
    assert {s.policy: s.accuracy for s in found} == pytest.approx(unlike, rel=1e-2)
    strict = max(scored.accuracy for scored in found)
    (best,) = ats_search(
        VICTIM, VICTIM, pictures, labels, candidates=6, points=3, least_accuracy=strict
    )
    assert best.accuracy == strict
    assert hybrid(found).chains == [scored.policy for scored in found[:2]]
    none = ats_search(VICTIM, VICTIM, pictures, labels, candidates=2, least_accuracy=math.inf)
    assert none == []
    with pytest.raises(InputError, match="keeps accuracy"):
        hybrid(none)


@pytest.mark.parametrize(("kind", "mean"), [(Noise, 0.7979), (Laplace, 0.7071)])
def test_noise_has_its_spread_and_shape(kind: type[Noise | Laplace], mean: float) -> None:
    noise = defended(kind(std=0.3)).update - bare()
    flat = torch.cat([t.flatten() for t in noise.tensors])
    assert float(flat.std()) == pytest.approx(0.3, rel=0.03)
    assert float(flat.abs().mean() / flat.std()) == pytest.approx(mean, abs=0.02)
    assert abs(float(flat.mean())) < 0.02
    again = defended(kind(std=0.3)).update
    assert torch.equal(again.tensors[0], defended(kind(std=0.3)).update.tensors[0])


@pytest.mark.parametrize("scheme", RANDOM)
def test_random_rounding_is_unbiased(scheme: str) -> None:
    plain = bare()
    total = plain * 0.0
    for seed in range(200):
        protocol = Quantize(scheme=scheme, levels=4).wrap(FedSGD(), seed)
        total = total + protocol(VICTIM, VICTIM.parameters, VICTIM.buffers, *images(0))
    mean = total / 200
    once = Quantize(scheme=scheme, levels=4).wrap(FedSGD(), 0)
    single = once(VICTIM, VICTIM.parameters, VICTIM.buffers, *images(0))
    assert float((mean - plain).norm()) < 0.15 * float((single - plain).norm())


@pytest.mark.parametrize(
    ("scheme", "values"), [("sign", 3), ("ternary", 3), ("qsgd", 33), ("int8", 255)]
)
def test_a_quantised_tensor_has_few_values(scheme: str, values: int) -> None:
    sent = defended(Quantize(scheme=scheme, levels=16)).update
    for tensor in sent.tensors:
        assert len(np.unique(tensor.numpy())) <= values


# -- guessing --------------------------------------------------------------------------


def lenet() -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(module=LeNet(7, 32))


LARGE = lenet()  # of sigmoids: no zeros but a defence's


def sent(*defenses: Defense, seed: int = 0) -> Upload:
    """An update of one image of 32 px."""
    client = Client(model=LARGE, defenses=defenses, seed=seed)
    return client.step(*images(seed, 1, 32))[0]


def observed(*defenses: Defense, attacker: Attacker = "static", seed: int = 0) -> Observation:
    return observe(sent(*defenses, seed=seed), attacker=attacker, defenses=defenses)


def guess_of(*defenses: Defense, seed: int = 0) -> tuple[Defense, ...]:
    return guessed(sent(*defenses, seed=seed))


@pytest.mark.parametrize("seed", range(4))
def test_an_undefended_update_shows_no_defence(seed: int) -> None:
    assert guess_of(seed=seed) == ()
    for side, batch in ((32, 1), (16, 2)):  # half of this update's numbers are zero by nature
        upload, _ = Client(model=VICTIM).step(*images(seed, batch, side))
        assert guessed(upload) == ()


@pytest.mark.parametrize("per_layer", [False, True])
def test_dropped_numbers_are_told_from_natural_zeros(per_layer: bool) -> None:
    sparse = Sparsify(rate=0.9, per_layer=per_layer)
    client = Client(model=VICTIM, defenses=(sparse,))
    (found,) = guessed(client.step(*images(0, 1, 32))[0])
    assert isinstance(found, Sparsify)
    assert found.rate == pytest.approx(0.9, abs=0.02)
    assert found.per_layer is per_layer


@given(st.floats(0.65, 5.0), st.integers(0, 5), st.sampled_from([Noise, Laplace]))
@settings(max_examples=12, deadline=None)
def test_noise_is_guessed_within_ten_percent(
    std: float, seed: int, kind: type[Noise | Laplace]
) -> None:
    (found,) = guess_of(kind(std=std), seed=seed)
    assert isinstance(found, kind)
    assert found.std == pytest.approx(std, rel=0.1)


@given(st.floats(0.3, 0.95), st.integers(0, 5), st.booleans())
@settings(max_examples=12, deadline=None)
def test_the_rate_of_zeros_is_guessed_within_two_percent(
    rate: float, seed: int, per_layer: bool
) -> None:
    found = guess_of(Sparsify(rate=rate, per_layer=per_layer), seed=seed)
    (sparse,) = [d for d in found if isinstance(d, Sparsify)]
    assert sparse.rate == pytest.approx(rate, abs=0.02)
    assert sparse.per_layer is per_layer


@given(st.floats(0.1, 0.95), st.integers(0, 5))
@settings(max_examples=10, deadline=None)
def test_soterias_columns_are_counted(rate: float, seed: int) -> None:
    (found,) = guess_of(Soteria(rate=rate), seed=seed)
    assert isinstance(found, Soteria)
    assert found.rate == pytest.approx(rate, abs=0.02)


@given(st.floats(0.001, 0.1), st.integers(0, 5))
@settings(max_examples=10, deadline=None)
def test_a_clipping_bound_is_the_length(share: float, seed: int) -> None:
    length = float(observed(seed=seed).update.norm())
    found = guess_of(Clip(norm=share * length), seed=seed)[-1]
    assert isinstance(found, Clip)
    assert found.norm == pytest.approx(share * length, rel=1e-3)


def test_a_clipping_bound_of_each_tensor_is_their_common_length() -> None:
    (found,) = guess_of(Clip(norm=1e-3, per_layer=True))
    assert isinstance(found, Clip)
    assert found.per_layer
    assert found.norm == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("scheme", ["sign", "ternary", "qsgd", "int8", "fp16", "bf16"])
@pytest.mark.parametrize("seed", range(3))
def test_a_quantiser_is_known_by_its_values(scheme: str, seed: int) -> None:
    found = guess_of(Quantize(scheme=scheme, levels=8), seed=seed)
    assert [d.scheme for d in found if isinstance(d, Quantize)] == [scheme]
    small = Client(model=VICTIM, defenses=(Quantize(scheme=scheme),))
    also = guessed(small.step(*images(seed, 1, 32))[0])
    assert [d.scheme for d in also if isinstance(d, Quantize)] == [scheme]
    assert not [d for d in found if isinstance(d, Sparsify | Soteria | Noise | Laplace)]


@pytest.mark.parametrize("steps", [(1, 2, 7), (2, 3, 7), (3, 4, 7), (3, 7, 127)])
def test_steps_are_counted_also_where_the_least_ones_are_missing(steps: tuple[int, ...]) -> None:
    bare = sent()
    rng = torch.Generator().manual_seed(0)
    sizes = torch.tensor(steps) * 0.0137

    def drawn(tensor: Tensor) -> Tensor:
        signs = torch.randint(2, tensor.shape, generator=rng) * 2 - 1
        return signs * sizes[torch.randint(len(steps), tensor.shape, generator=rng)]

    found = Quantize.guess(dataclasses.replace(bare, update=bare.update.map(drawn)))
    assert found is not None
    assert found.scheme == ("int8" if steps[-1] == 127 else "qsgd")


def test_the_attackers_differ_in_what_they_are_granted() -> None:
    defenses = (Sparsify(rate=0.9),)
    upload = sent(*defenses)
    adaptive, static, estimated = (
        observe(upload, attacker=attacker, defenses=defenses)
        for attacker in ("adaptive", "static", "estimated")
    )
    assert torch.equal(adaptive.update.tensors[0], static.update.tensors[0])
    assert adaptive.grants()["defenses"] == ["Sparsify(rate=0.9, per_layer=False)"]
    assert adaptive.ledger.believed == adaptive.ledger.defenses
    assert static.protocol == upload.protocol
    assert static.grants()["attacker"] == "static"
    assert static.grants()["defenses"] is None
    assert static.grants()["believed"] == []
    assert estimated.grants()["defenses"] is None
    (belief,) = estimated.ledger.believed
    assert belief.startswith(("Sparsify(rate=0.9", "Sparsify(rate=0.89"))

    def away(observation: Observation) -> float:
        truth = observation.replay(*images(0, 1, 32))
        return float((truth - observation.update).norm() / observation.update.norm())

    assert away(adaptive) < 1e-5
    assert away(estimated) < 1e-5
    assert away(static) > 0.05


@pytest.mark.parametrize("attacker", ["static", "adaptive"])
def test_without_defences_there_is_nothing_to_know_of_them(attacker: Attacker) -> None:
    seen = observed(attacker=attacker)
    assert (seen.ledger.attacker, seen.ledger.defenses, seen.ledger.believed) == (None, None, ())
    assert seen.protocol == FedSGD()


def test_what_was_disclosed_is_in_the_ledger() -> None:
    client = Client(model=VICTIM, grant_labels=True, grant_batch_norm="batch")
    upload, secret = client.step(*images(0))
    seen = observe(upload)
    assert seen.model is upload.model
    assert seen.ledger.labels is not None
    assert torch.equal(seen.ledger.labels, secret.labels)
    assert seen.ledger.batch_norm_source == "batch"
    assert (seen.ledger.image_shape, seen.ledger.batch_size) == ((3, 16, 16), 2)


def test_the_agreed_protocol_is_replayed_without_the_defences() -> None:
    upload, secret = Client(model=VICTIM, defenses=(Clip(norm=1e-3),)).step(*images(0))
    assert float(upload.update.norm()) == pytest.approx(1e-3, rel=1e-3)
    replayed = upload.replay(secret.images, secret.labels).detach()
    torch.testing.assert_close(replayed.tensors, bare().tensors)


# -- parts that are not sent ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("defense", "hidden"),
    [
        (Hide(parts="head"), {"fc.weight", "fc.bias"}),
        (Hide(parts="fc"), {"fc.weight", "fc.bias"}),
        (Hide(parts="fc.weight+body.0.1"), {"fc.weight", "body.0.1.weight", "body.0.1.bias"}),
        (Hide(parts="*.bias"), {n for n in VICTIM.parameters if n.endswith("bias")}),
        (Hide(all_but="body.2"), {n for n in VICTIM.parameters if not n.startswith("body.2.")}),
    ],
    ids=lambda value: repr(value) if isinstance(value, Hide) else "",
)
def test_what_is_hidden_is_zero_and_the_rest_unchanged(defense: Hide, hidden: set[str]) -> None:
    observation, plain = defended(defense), bare()
    for name, tensor in observation.update.items():
        expected = torch.zeros_like(tensor) if name in hidden else plain[name]
        assert torch.equal(tensor, expected)
        assert observation.hides(name) is (name in hidden)


def test_a_part_named_head_comes_before_the_head() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.out = nn.Conv2d(3, 4, 3), nn.Linear(4, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.head(x).mean((2, 3)))  # type: ignore[no-any-return]

    model = Model(module=Own())
    assert Hide(parts="head").hidden(model, (3, 16, 16)) == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Hide(), "joined by '[+]'"),
        (lambda: Hide(parts="fc", all_but="fc"), "joined by '[+]'"),
        (lambda: Hide(parts="fc++body"), "joined by '[+]'"),
        (lambda: defended(Hide(parts="fc.wieght")), "nearest is 'fc.weight'"),
        (lambda: defended(Hide(parts="body.9")), "got 'body.9'"),
        (lambda: defended(Hide(parts="body+fc")), "something to send"),
        (
            lambda: defended(
                Hide(parts="head"),
                model=Model(module=nn.Sequential(nn.Conv2d(3, 7, 16), nn.Flatten())),
            ),
            "name of the head.*last layer is linear",
        ),
    ],
)
def test_parts_that_there_are_not_are_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("parts", ["fc", "body.0", "*.bias", "fc.weight+body.1"])
def test_parts_that_are_missing_are_guessed(parts: str) -> None:
    client = Client(model=VICTIM, defenses=(Hide(parts=parts),))
    upload, _ = client.step(*images(0))
    (found,) = guessed(upload)
    assert isinstance(found, Hide)
    expected = Hide(parts=parts).hidden(VICTIM, (3, 16, 16))
    assert found.hidden(VICTIM, (3, 16, 16)) == expected
