"""What each client runs: one step of SGD on its images, every round."""

import nvflare.client as flare
import torch
import torch.nn.functional as F
from measured import images, model

flare.init()
while flare.is_running():
    received = flare.receive()
    net = model().module
    net.load_state_dict(received.params)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pixels, labels = images(flare.get_site_name())
    torch.autograd.backward(F.cross_entropy(net(pixels), labels))
    optimizer.step()
    flare.send(flare.FLModel(params=net.state_dict()))
