"""What does one gradient of *your* model give away? Run: python examples/attack_your_model.py"""

import torch

from gifd import Client, Model, attacks, faces64, observe, score
from gifd.metrics import PSNR, SSIM
from gifd.victims import ConvNet

net = ConvNet(classes=10).eval()  # any torch.nn.Module of yours
model = Model(module=net, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
prior = faces64()
private = prior.sample(1, seed=7)  # in place of a private image: (1, 3, 64, 64) in [0, 1]

upload, secret = Client(model=model).step(private, torch.tensor([4]))
observation = observe(upload)
found = attacks.gifd(prior, restarts=2).with_steps(60)(observation, seed=0)

print("granted:", dict(observation.grants()))
print("label:", found.labels.tolist(), found.label_source)
print("distance:", round(found.distance, 5), "in", found.evaluations, "evaluations")
print(score(found.images, secret.images, [PSNR(), SSIM()]))
