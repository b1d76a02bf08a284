"""A generator of your own is a list of modules. Run: python examples/your_own_prior.py"""

import torch
from torch import nn

from gifd import Client, ConvNet, Generator, Model, attacks, observe

stem = nn.Sequential(nn.Flatten(), nn.Linear(32, 64 * 16), nn.ReLU(), nn.Unflatten(1, (64, 4, 4)))
block = nn.Sequential(nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU())
image = nn.Sequential(nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Tanh())
prior = Generator([stem, block, image], latent=(32,), name="mine")

model = Model(module=ConvNet(classes=10, width=8).eval())
observation = observe(Client(model=model).step(torch.rand(1, 3, 16, 16), torch.tensor([1]))[0])
found = attacks.gifd(prior, restarts=1).with_steps(20)(observation)
for phase in found.phases:
    print(f"{phase.name}: distance {phase.distance:.4f}")
