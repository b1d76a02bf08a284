"""iDLG is exact for one image under cross-entropy, and reports when it cannot be."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gifd.attacker.observation import Observation
from gifd.attacker.observe import observe
from gifd.errors import InputError, ModelError
from gifd.federation.client import Client
from gifd.federation.optimizers import SGD
from gifd.federation.protocols import FedAvg, FedSGD, Protocol
from gifd.leakage.labels import infer_label, label_hypotheses
from gifd.model import Model
from gifd.victims import ConvNet

pytestmark = pytest.mark.numerical

PROTOCOLS = [
    FedSGD(),
    FedAvg(steps=1, lr=0.1),
    FedAvg(steps=3, lr=0.01, optimizer=SGD(momentum=0.9)),
]


def network(classes: int, *, bias: bool = True) -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8 * 9, classes, bias=bias))


def observed(
    module: nn.Module,
    labels: list[int],
    protocol: Protocol = PROTOCOLS[0],
    *,
    seed: int = 0,
    grant: bool = False,
    side: int = 8,
) -> Observation:
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand(len(labels), 3, side, side, generator=rng)
    client = Client(model=Model(module=module), protocol=protocol, grant_labels=grant)
    return observe(client.step(images, torch.tensor(labels))[0])


@given(
    st.integers(0, 10**6),
    st.sampled_from([2, 3, 10, 100]),
    st.integers(0, 99),
    st.booleans(),
    st.sampled_from(PROTOCOLS),
)
def test_the_label_of_one_image_is_read_exactly(
    seed: int, classes: int, label: int, bias: bool, protocol: Protocol
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = network(classes, bias=bias)
    observation = observed(module, [label % classes], protocol, seed=seed)
    assert observation.ledger.labels is None
    assert infer_label(observation).tolist() == [label % classes]
    labels, source = label_hypotheses(observation)
    assert labels.tolist() == [[label % classes]]
    if (classes > 2) + bias + (protocol in PROTOCOLS[:2]) > 1:  # else it cannot be checked
        assert source == "inferred"


@pytest.mark.parametrize("label", [0, 1])
def test_a_frozen_bias_leaves_the_rows_to_be_read(label: int) -> None:
    module = network(2)
    module.get_parameter("3.bias").requires_grad_(False)
    assert infer_label(observed(module, [label])).tolist() == [label]


def test_granted_labels_are_taken_as_they_are() -> None:
    labels, source = label_hypotheses(observed(network(5), [4, 4, 1], grant=True))
    assert (labels.tolist(), source) == ([[4, 4, 1]], "granted")


def test_the_labels_of_a_batch_are_estimated() -> None:
    observation = observed(network(5), [4, 1])
    labels, source = label_hypotheses(observation)
    assert (labels.tolist(), source) == ([[1, 4]], "estimated")
    with pytest.raises(InputError, match=r"one image .* got 2: estimate the counts") as error:
        infer_label(observation)
    assert "\n" not in str(error.value)


class LogSoftmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x).log_softmax(1)  # type: ignore[no-any-return]


def frozen_head() -> nn.Module:
    module = ConvNet(5, width=8).eval()
    module.fc.requires_grad_(False)
    return module


HEADLESS = {
    "convolution": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 6), nn.Flatten()
    ),
    "log-softmax": LogSoftmax,
    "frozen": frozen_head,
}


@pytest.mark.parametrize("kind", HEADLESS)
@pytest.mark.parametrize("label", range(5))
def test_without_a_linear_head_the_rest_of_the_update_shows_the_label(
    kind: str, label: int
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = HEADLESS[kind]()
    side = 16 if kind == "frozen" else 8
    observation = observed(module, [label], seed=label, side=side)
    with pytest.raises(ModelError, match=r"linear.*grant the labels") as error:
        infer_label(observation)
    assert "\n" not in str(error.value)
    labels, source = label_hypotheses(observation)
    assert (labels.tolist(), source) == ([[label]], "estimated")
    assert label_hypotheses(observed(module, [label], grant=True, side=side))[1] == "granted"


def test_a_client_that_is_certain_shows_no_label() -> None:
    module = ConvNet(3, width=4).eval()
    with torch.no_grad():
        module.fc.bias.copy_(torch.tensor([0.0, 1e4, 0.0]))
    with pytest.raises(ModelError, match="zeros only: grant the labels"):
        infer_label(observed(module, [1]))
