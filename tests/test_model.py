"""The model as a pure function: the module is unchanged, and its head is found."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gifd.errors import ModelError
from gifd.federation.protocols import FedSGD
from gifd.model import Model
from gifd.victims import ConvNet, LeNet, ResNet18

Untouched = Callable[[nn.Module], AbstractContextManager[None]]


class LossError(RuntimeError):
    pass


def failing_loss(logits: Tensor, labels: Tensor) -> Tensor:
    raise LossError


def lived_in(train: bool) -> nn.Module:
    """A module in use: with gradients, hooks and a frozen parameter."""
    module = ConvNet(4, width=4).train(train)
    module(torch.rand(2, 3, 16, 16)).sum().backward()
    module.get_parameter("body.0.0.weight").requires_grad_(False)
    module.fc.register_forward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize("train", [False, True])
def test_the_module_is_as_it_was_after_every_use(
    untouched: Untouched, pictures: Callable[..., Tensor], train: bool
) -> None:
    module = lived_in(train)
    images, labels = pictures(0, batch=2, side=16), torch.tensor([0, 3])
    with untouched(module):
        model = Model(module=module)
        FedSGD()(model, model.parameters, model.buffers, images, labels)
        model.head((3, 16, 16))
        broken = Model(module=module, loss=failing_loss)
        with pytest.raises(LossError):
            FedSGD()(broken, model.parameters, model.buffers, images, labels)
        with pytest.raises(RuntimeError):
            model.logits(model.parameters, model.buffers, torch.rand(1, 3, 0, 0))


def test_the_model_is_as_the_client_received_it(pictures: Callable[..., Tensor]) -> None:
    module = ConvNet(4, width=4).eval()
    model, images = Model(module=module), pictures(0, side=16)
    before = model.logits(model.parameters, model.buffers, images)
    assert torch.allclose(before, module(images), atol=1e-6)
    with torch.no_grad():
        module.fc.weight.add_(1.0)
        module.get_buffer("body.0.1.running_mean").add_(1.0)
    assert torch.equal(model.logits(model.parameters, model.buffers, images), before)


@pytest.mark.parametrize("trains", ["all", "one batch norm"])
@pytest.mark.parametrize("batched", [False, True])
def test_batch_norm_in_train_mode_writes_to_copies(
    pictures: Callable[..., Tensor], trains: str, batched: bool
) -> None:
    module = ConvNet(4, width=4).train(trains == "all")
    module.get_submodule("body.0.1").train()
    model = Model(module=module)
    before = {name: buffer.clone() for name, buffer in model.buffers.items()}

    def head(images: Tensor) -> Tensor:
        labels = torch.tensor([0, 1, 2])
        return FedSGD()(model, model.parameters, model.buffers, images, labels)["fc.weight"]

    images = pictures(0, batch=6, side=16).reshape(2, 3, 3, 16, 16)
    one_by_one = torch.stack([head(batch) for batch in images])
    if batched:
        assert torch.allclose(torch.func.vmap(head)(images), one_by_one, atol=1e-6)
    assert len(before) > 0
    assert all(torch.equal(model.buffers[name], before[name]) for name in before)


def test_frozen_parameters_are_no_part_of_an_update() -> None:
    module = ConvNet(4, width=4)
    module.fc.bias.requires_grad_(False)
    model = Model(module=module)
    assert "fc.bias" not in model.parameters
    assert "fc.bias" in model.buffers
    assert model.head((3, 16, 16)).bias is None


channel_means = st.tuples(*[st.floats(-2, 2)] * 3)
channel_stds = st.tuples(*[st.floats(0.05, 4)] * 3)


@given(st.integers(0, 10**6), channel_means, channel_stds)
def test_denormalize_undoes_normalize(
    seed: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    model = Model(module=nn.Linear(1, 1), mean=mean, std=std)
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed)).double()
    inputs = model.normalize(images)
    for c in range(3):
        assert torch.allclose(inputs[:, c], (images[:, c] - mean[c]) / std[c], atol=1e-5)
    assert torch.allclose(model.denormalize(inputs), images)
    assert torch.equal(model.normalize(images[None])[0], inputs)


@pytest.mark.parametrize(
    ("mean", "std"), [((0.0,), (1.0, 1.0)), ((0.0,), (0.0,)), ((0.0,), (-1.0,)), ((), ())]
)
def test_a_normalisation_that_cannot_be_one(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    with pytest.raises(ModelError, match="one positive std"):
        Model(module=nn.Linear(1, 1), mean=mean, std=std)


def test_images_with_other_channels_are_refused() -> None:
    with pytest.raises(ModelError, match=r"3 channels .* got 1"):
        Model(module=nn.Linear(1, 1)).normalize(torch.rand(1, 1, 4, 4))


def test_a_model_with_nothing_to_train() -> None:
    with pytest.raises(ModelError, match="trainable"):
        Model(module=nn.Linear(1, 1).requires_grad_(False))


class Classifier(nn.Module):
    """Linear layers registered in another order than that of the forward pass."""

    def __init__(self, *, bias: bool = True, functional: bool = False) -> None:
        super().__init__()
        self.writes_logits = nn.Linear(6, 5, bias=bias)
        self.first = nn.Linear(12, 6)
        self.unused = nn.Linear(5, 5)
        self.functional = functional

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x.flatten(1)))
        if self.functional:
            return F.linear(weight=self.writes_logits.weight, input=x)
        logits: Tensor = self.writes_logits(x)
        return logits


@pytest.mark.parametrize("bias", [True, False])
def test_the_head_is_found_by_the_forward_pass(bias: bool) -> None:
    head = Model(module=Classifier(bias=bias)).head((3, 2, 2))
    assert (head.weight, head.classes) == ("writes_logits.weight", 5)
    assert head.bias == ("writes_logits.bias" if bias else None)


def test_a_head_that_is_a_bare_function_is_found() -> None:
    head = Model(module=Classifier(functional=True)).head((3, 2, 2))
    assert (head.weight, head.bias) == ("writes_logits.weight", None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("module", [ResNet18(3), LeNet(3, size=16), ConvNet(3, width=4)])
def test_the_heads_of_our_victims(module: nn.Module, dtype: torch.dtype) -> None:
    head = Model(module=module.eval().to(dtype)).head((3, 16, 16))
    assert (head.weight, head.bias, head.classes) == ("fc.weight", "fc.bias", 3)
    module.float()


class Wrapped(nn.Module):
    """A last linear layer whose output or weight is modified."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 5)
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if self.what == "weight":
            return F.linear(x, 2 * self.linear.weight)
        logits: Tensor = self.linear(x)
        return logits * 2


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Sequential(nn.Conv2d(3, 5, 2), nn.Flatten()), "last layer is linear"),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.LogSoftmax(-1)), "last layer is linear"),
        (Wrapped("output"), "last layer is linear"),
        (Wrapped("weight"), "frozen or computed"),
    ],
)
def test_a_model_without_a_linear_head(module: nn.Module, reason: str) -> None:
    with pytest.raises(ModelError, match=f"{reason}.*grant the labels") as error:
        Model(module=module).head((3, 2, 2))
    assert "\n" not in str(error.value)


def test_a_frozen_head_shows_no_labels() -> None:
    module = Classifier()
    module.writes_logits.weight.requires_grad_(False)
    with pytest.raises(ModelError, match="frozen"):
        Model(module=module).head((3, 2, 2))
