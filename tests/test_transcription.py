"""GIFD as `paper` against the algorithm written again, in plain loops and plain autograd.

The transcription shares no code with the engine: its own Adam, projections, objective and choice.
It reads the schedule as we do (at the end of a step); all else is as in the paper's Algorithm 1.
"""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gifd.attacker.observe import observe
from gifd.attacks import domains, gifd
from gifd.attacks.domains import Domains
from gifd.federation.client import Client
from gifd.model import Model
from gifd.priors import Generator
from gifd.priors.stylegan2 import stylegan2
from golden.tiny import small_stylegan2

pytestmark = pytest.mark.numerical

State = dict[str, Tensor]
STEPS, RESTARTS = 12, 2


def gradient(model: Model, image: Tensor, label: Tensor) -> Tensor:
    """The gradient of the loss in all parameters, as one vector."""
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (model.mean, model.std))
    parameters = [p for p in model.module.parameters() if p.requires_grad]
    loss = F.cross_entropy(model.module((image - mean) / std), label)
    slopes = torch.autograd.grad(loss, parameters, create_graph=True)
    return torch.cat([slope.flatten() for slope in slopes])


def cosine_distance(u: Tensor, v: Tensor) -> Tensor:
    cosine: Tensor = (u @ v) / (u.square().sum() * v.square().sum()).sqrt()
    return 1 - cosine


def onto_l1_ball(v: Tensor, radius: float) -> Tensor:
    """By sorting (Duchi et al., ICML 2008)."""
    flat = v.flatten().abs()
    if flat.sum() <= radius:
        return v
    down = flat.sort(descending=True).values
    over = (down.cumsum(0) - radius) / torch.arange(1, len(down) + 1)
    threshold = over[int((down > over).nonzero().max())]
    return v.sign() * (v.abs() - threshold).clamp_min(0)


def onto_sphere(v: Tensor, entry: Tensor, rows: bool) -> Tensor:
    pairs = zip(v[0], entry[0], strict=True) if rows else [(v[0], entry[0])]
    scaled = [a * (b.square().sum() / a.square().sum()).sqrt() for a, b in pairs]
    return (torch.stack(scaled) if rows else scaled[0])[None]


def search_phase(
    show: Callable[[State], Tensor],
    state: State,
    limit: Callable[[str, Tensor, Tensor], Tensor],
    searched: Sequence[str],
    model: Model,
    label: Tensor,
    observed: Tensor,
) -> tuple[State, list[float]]:
    """`STEPS` of Adam from `state`: its end, and the distance at every step."""
    entry, state, curve = dict(state), dict(state), []
    first = {name: torch.zeros_like(state[name]) for name in searched}
    second = {name: torch.zeros_like(state[name]) for name in searched}
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (model.mean, model.std))
    for step in range(1, STEPS + 1):
        leaves = {name: state[name].clone().requires_grad_() for name in searched}
        image = show({**state, **leaves})
        x = (image - mean) / std
        distance = cosine_distance(gradient(model, image, label), observed)
        variation = (x[:, :, 1:] - x[:, :, :-1]).abs().mean()
        variation = variation + (x[:, :, :, 1:] - x[:, :, :, :-1]).abs().mean()
        objective = distance + 1e-4 * variation + 1e-6 * x.norm() / (x.shape[2] * x.shape[3])
        slopes = torch.autograd.grad(objective, [leaves[name] for name in searched])
        curve.append(float(distance.detach()))
        if step == STEPS:
            break  # the rate is 0: a phase ends at its last evaluated iterate
        done = step / STEPS
        fall = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - done) / 0.75))
        rate = 0.1 * fall * min(1.0, done / 0.05)
        for name, slope in zip(searched, slopes, strict=True):
            first[name] = 0.9 * first[name] + 0.1 * slope
            second[name] = 0.999 * second[name] + 0.001 * slope**2
            size = (second[name] / (1 - 0.999**step)).sqrt() + 1e-8
            moved = state[name] - rate * first[name] / (1 - 0.9**step) / size
            state[name] = limit(name, moved, entry[name])
    return state, curve


def smooth_chain() -> Generator:
    """A generator of two smooth stages in float64, 8 px."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        grow = nn.Sequential(nn.ConvTranspose2d(6, 5, 4), nn.Tanh()).double()
        paint = nn.Sequential(nn.ConvTranspose2d(5, 3, 4, 2, 1), nn.Tanh()).double()

    def draw(count: int, rng: torch.Generator) -> State:
        return {"x": torch.randn(count, 6, 1, 1, generator=rng).double()}

    return Generator([grow, paint], latent=draw)


def style_chain() -> Generator:
    """A StyleGAN2 of 16 px in float64, averaged down to 8."""
    made = stylegan2(small_stylegan2(), area=8)

    def draw(count: int, rng: torch.Generator) -> State:
        return {name: tensor.double() for name, tensor in made.draw(count, rng).items()}

    stages = [stage.double() for stage in made.stages]
    return Generator(
        stages,
        latent=draw,
        image_range=(0.0, 1.0),
        searchable=made.searchable(0),
        name="stylegan2",
        family="stylegan2",
    )


@pytest.mark.parametrize("make", [smooth_chain, style_chain])
def test_paper_is_the_algorithm_step_by_step(
    make: Callable[[], Generator],
    smooth: Model,
    pictures: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Curves of every phase and restart, states' images, the choice: in float64."""
    style = make is style_chain
    beside = 0.5 if style else None
    chosen = Domains(features=2 if style else 1, radius=0.6, growth=0.3, beside=beside)
    monkeypatch.setitem(domains.DOMAINS, "stylegan2", chosen)
    prior, label = make(), torch.tensor([2])
    upload, secret = Client(model=smooth).step(pictures(3).double(), label)
    observation = observe(upload)
    if style:
        attack = gifd(prior, preset="paper", restarts=RESTARTS)
    else:
        attack = gifd(
            prior, preset="paper", restarts=RESTARTS, features=1, radius=0.6, radius_step=0.3
        )
    phases = chosen.features + 1
    found = attack.with_steps(STEPS * phases)(observation, seed=4)

    observed = gradient(smooth, secret.images, label).detach()
    drawn = prior.draw(RESTARTS, torch.Generator().manual_seed(4))
    ends: list[tuple[float, int, Tensor]] = []
    curves: list[list[list[float]]] = [[] for _ in range(phases)]
    for restart in range(RESTARTS):
        state = {name: tensor[restart : restart + 1] for name, tensor in drawn.items()}
        for k in range(phases):

            def show(state: State, k: int = k) -> Tensor:
                return prior[k:](state)["x"]

            def limit(name: str, value: Tensor, entry: Tensor, k: int = k) -> Tensor:
                if style and (k == 0 or name != "x"):  # w+, noise maps
                    value = onto_sphere(value, entry, rows=True)
                    return entry + onto_l1_ball(value - entry, 0.5 + 0.3 * k)
                if k == 0:
                    return onto_sphere(value, entry, rows=False)
                return entry + onto_l1_ball(value - entry, 0.6 + 0.3 * (k - 1))

            if k > 0:
                with torch.no_grad():
                    state = dict(prior[k - 1 : k](state))
            searched = prior.searchable(k)
            state, curve = search_phase(show, state, limit, searched, smooth, label, observed)
            curves[k].append(curve)
            with torch.no_grad():
                image = show(state)
            distance = float(cosine_distance(gradient(smooth, image, label), observed).detach())
            ends.append((distance, k, image.clamp(0, 1)))

    for phase, each in zip(found.phases, curves, strict=True):
        assert torch.allclose(torch.tensor(phase.curve), torch.tensor(each).T, rtol=1e-5)
    distance, k, image = min(ends, key=lambda end: end[0])
    assert found.phase == found.phases[k].name
    assert found.distance == pytest.approx(distance, rel=1e-6)
    assert torch.allclose(found.images, image, atol=1e-8)
    for k, phase in enumerate(found.phases):
        least, _, image = min((end for end in ends if end[1] == k), key=lambda end: end[0])
        assert phase.distance == pytest.approx(least, rel=1e-6)
        assert torch.allclose(phase.images, image, atol=1e-8)
