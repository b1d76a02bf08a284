"""The results of every attack on one small victim, in float64, by the former engine.

    cd tests && python -m golden.runs > golden/runs.json

The numbers on file are those of the engine that gifd had until its search was rebuilt as one pure
step (commit 51ce6f1, with pixels in the model's dtype). They are never made anew to let a test
pass: a change of them is a change of the method, and is named in docs/attacks.md.
"""

import dataclasses
import json

import torch
import torch.nn.functional as F
from torch import Tensor

from gifd import catalog
from gifd.attacker.observation import Observation
from gifd.attacker.observe import observe
from gifd.attacks import Attack, Reconstruction
from gifd.federation.client import Client
from gifd.federation.protocols import FedAvg, FedSGD
from gifd.model import Model
from gifd.priors import Generator, State
from gifd.priors.dcgan import dcgan_stages
from gifd.search import CMAES, DeepPrior, Learned
from gifd.victims import ConvNet
from golden.formula import digest

Found = dict[str, object]

COMPARED = ("ig", "gradinversion", "ggl", "gias")  # the others' 'gifd-paper' is their 'paper'
RUNS = [
    (name, preset, batch)
    for name in catalog.ATTACKS
    if name not in ("ensemble", "lti", "peel")  # younger than these runs
    for preset in ("paper", "gifd-paper", "strongest")
    if preset != "gifd-paper" or name in COMPARED
    for batch in (1, 2)
]
STEPS = 12


def observation(batch: int) -> Observation:
    """One image by FedSGD, or two by two steps of FedAvg; 16 px, 4 classes, ReLUs, float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = ConvNet(4, width=4).eval().double()
    model = Model(module=module, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
    coarse = torch.rand(batch, 3, 4, 4, generator=torch.Generator().manual_seed(3)).double()
    images = F.interpolate(coarse, size=(16, 16), mode="bilinear").clamp(0, 1)
    protocol = FedSGD() if batch == 1 else FedAvg(steps=2, lr=0.05)
    client = Client(
        model=model, protocol=protocol, grant_labels=batch > 1, grant_batch_norm="running"
    )
    return observe(client.step(images, torch.arange(batch) + 1)[0])


def prior() -> Generator:
    """A DCGAN of 16 px in float64 with random weights."""

    def latents(count: int, rng: torch.Generator) -> State:
        return {"x": torch.randn(count, 8, 1, 1, generator=rng).double()}

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stages = dcgan_stages(latent=8, width=8, channels=3, doublings=2)
    return Generator([stage.double() for stage in stages], latent=latents)


def attack(name: str, preset: str) -> Attack:
    """An attack of the catalogue with two restarts, reduced where its size does not matter."""
    built = catalog.attack(name, prior=prior(), preset=preset, restarts=2)
    phases = []
    for phase in built.phases:
        if isinstance(phase.space, DeepPrior):
            phase = dataclasses.replace(phase, space=DeepPrior(width=8))
        if isinstance(phase.optimizer, CMAES):
            optimizer = dataclasses.replace(phase.optimizer, population=6)
            phase = dataclasses.replace(phase, optimizer=optimizer)
        if isinstance(phase.begin, Learned):
            begin = dataclasses.replace(phase.begin, hidden=16, inputs=200, epochs=4)
            phase = dataclasses.replace(phase, begin=begin)
        phases.append(phase)
    return dataclasses.replace(built, phases=tuple(phases)).with_steps(
        2 * STEPS if name == "fedleak" else STEPS  # two evaluations a step
    )


def run(name: str, preset: str, batch: int) -> Found:
    """The result of this attack, in a few numbers."""
    return told(attack(name, preset)(observation(batch), seed=7))


def told(found: Reconstruction) -> Found:
    """A digest of a result: distances, curves and images."""
    return {
        "phase": found.phase,
        "distance": found.distance,
        "evaluations": found.evaluations,
        "images": digest(found.images),
        "phases": [
            {
                "name": phase.name,
                "distance": phase.distance,
                "best_restart": phase.best_restart,
                "steps": len(phase.curve),
                "first": list(phase.curve[0]),
                "last": list(phase.curve[-1]),
                "images": digest(phase.images),
            }
            for phase in found.phases
        ],
    }


def as_tensor(numbers: object) -> Tensor:
    """Numbers of the file, to be compared."""
    return torch.tensor(numbers, dtype=torch.float64)


def main() -> None:
    """Print the results of every attack as JSON."""
    torch.set_num_threads(1)
    print(json.dumps({"/".join(map(str, each)): run(*each) for each in RUNS}, indent=1))


if __name__ == "__main__":
    main()
