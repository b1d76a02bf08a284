"""A Flower federation whose clients measure what they give away, and whose server records it.

pip install 'gifd[flower]' 'flwr[simulation]'; docs/flower.md says how to invert what it records.
"""

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from victim import model

import gifd
from gifd.integrations.flower import LeakageMod, Recorded
from gifd.leaves import dead_leaves


def batch(message: Message, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
    """This client's private images and labels; here random shapes."""
    rng = torch.Generator().manual_seed(context.node_id)
    return dead_leaves(1, (3, 32, 32), rng), torch.randint(10, (1,), generator=rng)


attack = gifd.attacks.ig(restarts=1).with_steps(100)
protocol = gifd.FedAvg(steps=1, lr=0.1)
measure = LeakageMod(model(), (3, 32, 32), protocol, batch=batch, attack=attack)
client = ClientApp()


@client.train(mods=[measure])
def train(message: Message, context: Context) -> Message:
    """One step of SGD on the client's batch."""
    net = model().module
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    images, labels = batch(message, context)
    torch.autograd.backward(F.cross_entropy(net(images), labels))
    optimizer.step()
    metrics = MetricRecord({"num-examples": len(images)})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Four clients, three rounds, recorded in `updates/`."""
    strategy = Recorded(FedAvg(fraction_evaluate=0.0, min_available_nodes=4), "updates")
    arrays = ArrayRecord(model().module.state_dict())
    result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=3)
    print(result.train_metrics_clientapp)


if __name__ == "__main__":
    run_simulation(server, client, num_supernodes=4)
