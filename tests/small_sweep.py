"""A small trial and federation with changeable settings, and their keys by name."""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gifd.attacks import Attack, LabelMapping
from gifd.campaign.sweep import Keys
from gifd.campaign.trial import Trial
from gifd.campaign.utility import Federation
from gifd.federation.client import Client
from gifd.federation.defenses import ATS, Clip, Noise
from gifd.federation.protocols import FedAvg
from gifd.metrics import MSE, PSNR, STLPIPS
from gifd.model import Model
from gifd.priors import Generator, Remapper, stylegan2
from gifd.priors.remapper import RemapperNet
from gifd.search import (
    Adam,
    Consensus,
    Constant,
    Cosine,
    L1Ball,
    Latent,
    LayerCosine,
    Measure,
    Phase,
    Squared,
    TotalVariation,
)
from gifd.training import ImageSet
from gifd.victims import ConvNet
from golden.tiny import small_stylegan2


class Smooth(ConvNet):
    """The same network, its output squashed."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels)


def clipped(limit: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda logits, labels: F.cross_entropy(logits.clamp(-limit, limit), labels)


def network(kind: type[ConvNet] = ConvNet, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(4, width=4).eval()


def model(change: Callable[[nn.Module], object] = id, **settings: Any) -> Model:
    module = settings.pop("module", None) or network()
    change(module)
    given = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25), **settings}
    return Model(module=module, **given)


def client(**settings: Any) -> Client:
    given = {"model": _model(), "defenses": (Noise(std=0.1), Clip(norm=1.0)), **settings}
    return Client(**given)


def prior(nudge: float = 0.0) -> Generator:
    weights = small_stylegan2(classes=3)
    weights[next(iter(weights))].view(-1)[0] += nudge
    return stylegan2(weights, latent="z", name="tiny")


def phase(**settings: Any) -> Phase:
    given = {
        "name": "latent",
        "space": Latent(),
        "steps": 3,
        "optimizer": Adam(lr=0.1),
        "distance": Cosine(),
        "regularizers": (TotalVariation(weight=1e-4),),
        "constraints": {"x": L1Ball(radius=100.0)},
        **settings,
    }
    return Phase(**given)


def mapping(seed: int = 0, **settings: Any) -> LabelMapping:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = RemapperNet(3, colours=3, width=4)
    remapper = Remapper(net=net, classes=3, accuracy=0.5, name="tiny")
    return LabelMapping(classify=remapper, name="tiny", **settings)


def attack(**settings: Any) -> Attack:
    given = {
        "name": "small",
        "reference": "-",
        "phases": (phase(),),
        "restarts": 2,
        "prior": _prior(),
        "label_mapping": _mapping(),
        **settings,
    }
    return Attack(**given)


def trial(**settings: Any) -> Trial:
    given = {
        "names": ["one.png"],
        "images": torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
        "labels": torch.tensor([1]),
        "client": client(),
        "victim": {"name": "convnet"},
        "attack": attack(),
        "metrics": (PSNR(), MSE()),
        "seed": 0,
        **settings,
    }
    return Trial(**given)


def federation(**settings: Any) -> Federation:
    rng = torch.Generator().manual_seed(0)
    data = ImageSet(
        images=torch.randint(256, (20, 3, 16, 16), generator=rng, dtype=torch.uint8),
        labels=torch.randint(4, (20,), generator=rng),
        classes=("a", "b", "c", "d"),
    )
    given = {
        "model": _model(),
        "data": data,
        "defenses": (Noise(std=0.1),),
        "rounds": 1,
        "clients": 2,
        "batch": 2,
        "seed": 0,
        **settings,
    }
    return Federation(**given)


_model, _prior, _mapping = cache(model), cache(prior), cache(mapping)
"""Unchanged objects are built once: keys hash each object once."""


def _batch_norm(module: nn.Module) -> None:
    next(m for m in module.modules() if isinstance(m, nn.BatchNorm2d)).running_mean.add_(0.01)  # type: ignore[union-attr]


def _weight(module: nn.Module) -> None:
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] += 1e-6


def _frozen(module: nn.Module) -> None:
    next(module.parameters()).requires_grad_(False)


def _momentum(module: nn.Module) -> None:
    next(m for m in module.modules() if isinstance(m, nn.BatchNorm2d)).eps = 1e-3


def _nudged(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[-1] = 1 - tensor.view(-1)[-1] if tensor.is_floating_point() else 3
    return tensor


def _of_model(**settings: Any) -> Trial:
    return trial(client=client(model=model(**settings)))


def _of_client(**settings: Any) -> Trial:
    return trial(client=client(**settings))


def _of_attack(**settings: Any) -> Trial:
    return trial(attack=attack(**settings))


def _of_phase(**settings: Any) -> Trial:
    return _of_attack(phases=(phase(**settings),))


NOISE, CLIP = Noise(std=0.1), Clip(norm=1.0)

TRIALS: dict[str, Callable[[], Trial]] = {
    "as it is": trial,
    "an image": lambda: trial(images=_nudged(trial().images)),
    "a label": lambda: trial(labels=torch.tensor([2])),
    "two images": lambda: trial(
        names=["a", "b"], images=trial().images.repeat(2, 1, 1, 1), labels=torch.tensor([1, 1])
    ),
    "the attack's seed": lambda: trial(seed=1),
    "the metrics": lambda: trial(metrics=(PSNR(),)),
    "the victim's seed": lambda: _of_model(module=network(seed=1)),
    "the victim's forward": lambda: _of_model(module=network(Smooth)),
    "one weight": lambda: _of_model(change=_weight),
    "a buffer": lambda: _of_model(change=_batch_norm),
    "a frozen parameter": lambda: _of_model(change=_frozen),
    "a layer's option": lambda: _of_model(change=_momentum),
    "training mode": lambda: _of_model(change=nn.Module.train),
    "double precision": lambda: _of_model(change=nn.Module.double),
    "the mean": lambda: _of_model(mean=(0.5, 0.4, 0.31)),
    "the standard deviation": lambda: _of_model(std=(0.2, 0.3, 0.26)),
    "the loss": lambda: _of_model(loss=mean_loss),
    "a loss with a closure": lambda: _of_model(loss=clipped(5.0)),
    "another value in it": lambda: _of_model(loss=clipped(6.0)),
    "the protocol": lambda: _of_client(protocol=FedAvg(steps=1, lr=0.1)),
    "the learning rate": lambda: _of_client(protocol=FedAvg(steps=1, lr=0.2)),
    "the local steps": lambda: _of_client(protocol=FedAvg(steps=2, lr=0.1)),
    "granted labels": lambda: _of_client(grant_labels=True),
    "granted statistics": lambda: _of_client(grant_batch_norm="batch"),
    "other statistics": lambda: _of_client(grant_batch_norm="running"),
    "no defence": lambda: _of_client(defenses=()),
    "one defence": lambda: _of_client(defenses=(NOISE,)),
    "the defences' order": lambda: _of_client(defenses=(CLIP, NOISE)),
    "a defence's strength": lambda: _of_client(defenses=(Noise(std=0.2), CLIP)),
    "a defence's own seed": lambda: _of_client(defenses=(ATS(seed=1),)),
    "that defence": lambda: _of_client(defenses=(ATS(seed=2),)),
    "the noise's seed": lambda: _of_client(seed=1),
    "the attacker": lambda: trial(attacker="static"),
    "restarts": lambda: _of_attack(restarts=3),
    "the answer": lambda: _of_attack(answer="last"),
    "steps": lambda: _of_phase(steps=4),
    "the optimiser's rate": lambda: _of_phase(optimizer=Adam(lr=0.2)),
    "its schedule": lambda: _of_phase(optimizer=Adam(lr=0.1, schedule=Constant())),
    "the distance": lambda: _of_phase(distance=LayerCosine()),
    "another distance": lambda: _of_phase(distance=Squared()),
    "a penalty": lambda: _of_phase(regularizers=()),
    "its weight": lambda: _of_phase(regularizers=(TotalVariation(weight=2e-4),)),
    "a constraint": lambda: _of_phase(constraints={}),
    "its radius": lambda: _of_phase(constraints={"x": L1Ball(radius=101.0)}),
    "curvature": lambda: _of_phase(curvature=1.0),
    "smoothing": lambda: _of_phase(smoothing=0.3),
    "the iterate kept": lambda: _of_phase(keeps="last"),
    "the measure to choose by": lambda: _of_attack(selection=Measure(smoothing=0.3)),
    "kept restarts": lambda: _of_phase(keep=1),
    "consensus": lambda: _of_phase(begin=Consensus()),
    "a weight of the prior": lambda: _of_attack(prior=prior(nudge=1e-4)),
    "the prior's size": lambda: _of_attack(prior=prior().averaged(8)),
    "no label mapping": lambda: _of_attack(label_mapping=None),
    "the remapper's weights": lambda: _of_attack(label_mapping=mapping(seed=1)),
    "the coarse share": lambda: _of_attack(label_mapping=mapping(coarse=0.2)),
}
"""Each gives another result than the first and all others."""

SAME: dict[str, Callable[[], Trial]] = {
    "the files' names": lambda: trial(names=["two.png"]),
    "how the victim came about": lambda: trial(victim={"name": "other"}),
    "memory's order": lambda: trial(images=trial().images.mT.contiguous().mT),
}
"""Each has the same result as the first."""

FEDERATIONS: dict[str, Callable[[], Federation]] = {
    "as it is": federation,
    "images": lambda: federation(
        data=dataclasses.replace(federation().data, images=_nudged(federation().data.images))
    ),
    "labels": lambda: federation(
        data=dataclasses.replace(federation().data, labels=federation().data.labels.flip(0))  # type: ignore[union-attr]
    ),
    "rounds": lambda: federation(rounds=2),
    "clients": lambda: federation(clients=3),
    "batch": lambda: federation(batch=3),
    "seed": lambda: federation(seed=1),
    "defences": lambda: federation(defenses=()),
    "strength": lambda: federation(defenses=(Noise(std=0.2),)),
    "the victim": lambda: federation(model=model(module=network(seed=1))),
}


def keys() -> dict[str, str]:
    """The keys of all trials and federations above, by name."""
    known = Keys()
    found = {f"trial: {name}": known.trial(make()) for name, make in TRIALS.items()}
    return found | {
        f"federation: {name}": known.federation(make()) for name, make in FEDERATIONS.items()
    }


def offline() -> list[str]:
    """Keys with metrics' weights downloaded and cached."""
    return [Keys().trial(trial(metrics=(STLPIPS(offline=which),))) for which in (False, True)]
