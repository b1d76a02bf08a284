"""Common kinds of models: each through the client, label inference and the search."""

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import opacus
import pytest
import torch
import torch.nn.functional as F
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from gifd.attacker.observation import Ledger, Observation
from gifd.attacker.observe import observe
from gifd.attacks import dlg, ig
from gifd.errors import ModelError
from gifd.federation.client import Client, check_replay
from gifd.federation.protocols import FedAvg, FedSGD
from gifd.leakage.labels import infer_label
from gifd.model import Model
from gifd.outputs import logits_in
from gifd.search import Squared

CLASSES, WIDTH = 4, 8
LABEL = torch.tensor([2])
Seeded = Callable[[int, Callable[[], nn.Module]], nn.Module]


class Attention(nn.Module):
    """Attention by the fused function, as in current vision transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
        mixed: Tensor = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
        return self.out(mixed)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and an MLP, each after a layer norm."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = attention
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class MultiHead(nn.Module):
    """`nn.MultiheadAttention` of a sequence with itself; without the weights it is fused."""

    def __init__(self, weights: bool) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=self.weights)[0]  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Patches of 4 x 4 pixels, an encoder, the mean token, a linear head."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.places = nn.Parameter(0.1 * torch.randn(1, 4, WIDTH))
        self.encoder = encoder
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places  # (B, 4, WIDTH)
        return self.head(self.encoder(tokens).mean(1))  # type: ignore[no-any-return]


def encoder(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, activation="gelu", batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class Returning(nn.Module):
    """A small network that returns what `wrap(logits, auxiliary logits)` makes."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, WIDTH), nn.Sigmoid())
        self.head, self.auxiliary = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, 7)
        self.wrap = wrap

    def forward(self, x: Tensor) -> object:
        h = self.body(x)
        return self.wrap(self.head(h), self.auxiliary(h))  # the head is not the last layer


class InPlace(nn.Module):
    """In-place activations."""

    def __init__(self) -> None:
        super().__init__()
        kinds = (nn.SiLU(inplace=True), nn.ReLU6(inplace=True), nn.GELU(), nn.ReLU(inplace=True))
        layers = [layer for kind in kinds for layer in (nn.Linear(WIDTH, WIDTH), kind)]
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, WIDTH), *layers)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))  # type: ignore[no-any-return]


@dataclass
class AnObject:
    """Like an output of Hugging Face, but not a mapping."""

    loss: Tensor | None
    logits: Tensor


class AModelOutput(OrderedDict[str, Any]):
    """Like an output of Hugging Face: a dict whose entries are attributes."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


GoogLeNetLike = namedtuple("GoogLeNetLike", ["logits", "aux_logits2", "aux_logits1"])

KINDS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: Transformer(nn.Sequential(Block(Attention()), Block(Attention()))),
    "multi-head, fused": lambda: Transformer(Block(MultiHead(weights=False))),
    "multi-head, weights": lambda: Transformer(Block(MultiHead(weights=True))),
    "encoder": lambda: Transformer(encoder()),
    "encoder, norm first": lambda: Transformer(encoder(norm_first=True)),
    "in place": InPlace,
    "tuple": lambda: Returning(lambda logits, other: (logits, other)),
    "list": lambda: Returning(lambda logits, other: [logits, other]),
    "dict": lambda: Returning(lambda logits, other: {"aux": other, "logits": logits}),
    "dict of one": lambda: Returning(lambda logits, other: {"scores": logits}),
    "object": lambda: Returning(lambda logits, other: AnObject(None, logits)),
    "model output": lambda: Returning(lambda logits, other: AModelOutput(aux=other, logits=logits)),
    "named tuple": lambda: Returning(lambda logits, other: GoogLeNetLike(logits, other, None)),
}


@pytest.fixture(params=KINDS, ids=list(KINDS))
def kind(request: pytest.FixtureRequest, seeded: Seeded) -> Model:
    return Model(module=seeded(1, KINDS[request.param]).double())


@pytest.fixture
def image(pictures: Callable[..., Tensor]) -> Tensor:
    return pictures(3).double()


def test_the_client_steps_and_the_label_is_read(
    kind: Model,
    image: Tensor,
    untouched: Callable[[nn.Module], AbstractContextManager[None]],
) -> None:
    assert kind.classes((3, 8, 8)) == CLASSES
    assert kind.head((3, 8, 8)).weight == "head.weight"
    assert kind.representations(image).shape == (1, WIDTH)
    with untouched(kind.module):
        for protocol in (FedSGD(), FedAvg(steps=2, lr=0.01)):
            upload, secret = Client(model=kind, protocol=protocol).step(image, LABEL)
            observation = observe(upload)
            check_replay(upload, secret)
            assert torch.equal(infer_label(observation), LABEL)


def test_a_search_is_the_same_batched_and_not(kind: Model, image: Tensor) -> None:
    observation = observe(Client(model=kind).step(image, LABEL)[0])
    attack = ig(restarts=2).with_steps(3)
    one_by_one, batched = (attack(observation, batched=how) for how in (False, True))
    curve = torch.tensor(one_by_one.phases[0].curve)
    assert bool((curve[-1] < curve[0]).all())
    torch.testing.assert_close(curve, torch.tensor(batched.phases[0].curve), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(one_by_one.images, batched.images, rtol=1e-5, atol=1e-6)


def test_soft_labels_and_second_order_steps(kind: Model, image: Tensor) -> None:
    observation = observe(Client(model=kind).step(image, LABEL)[0])
    found = dlg(restarts=1).with_steps(2)(observation)
    assert found.label_source == "searched"
    assert torch.isfinite(torch.tensor(found.distance))


def test_the_slope_is_that_of_finite_differences(kind: Model, image: Tensor) -> None:
    observation = observe(Client(model=kind).step(image, LABEL)[0])

    def distance(x: Tensor) -> Tensor:
        return Squared()(observation.replay(x, LABEL), observation.update)

    rng = torch.Generator().manual_seed(0)
    start = 0.2 + 0.6 * torch.rand(image.shape, generator=rng, dtype=torch.float64)
    way = torch.randn(image.shape, generator=rng, dtype=torch.float64)
    leaf = start.clone().requires_grad_()
    (slope,) = torch.autograd.grad(distance(leaf), leaf)
    h = 1e-5
    numeric = (distance(start + h * way) - distance(start - h * way)) / (2 * h)
    assert float((slope * way).sum()) == pytest.approx(float(numeric), rel=1e-6)


def test_the_settings_of_torch_are_as_they_were(kind: Model, image: Tensor) -> None:
    def settings() -> tuple[bool, ...]:
        flags = ("flash_sdp", "mem_efficient_sdp", "math_sdp", "cudnn_sdp")
        kernels = [bool(getattr(torch.backends.cuda, f"{flag}_enabled")()) for flag in flags]
        return (torch.backends.mha.get_fastpath_enabled(), *kernels)

    before = settings()
    with torch.nn.attention.sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        narrowed = settings()
        Client(model=kind).step(image, LABEL)
        with pytest.raises(ModelError):
            Client(model=kind).step(image[:, :, :3, :3], LABEL)
        assert settings() == narrowed
    assert settings() == before


@pytest.mark.parametrize(
    ("output", "got"),
    [
        ({"a": torch.zeros(1, 2), "b": torch.zeros(1, 2)}, "got dict with a, b"),
        ({"logits": None, "loss": None}, "got dict with logits, loss"),
        ((), "got tuple"),
        (([1.0],), "got tuple"),
        (None, "got NoneType"),
    ],
)
def test_an_output_without_logits_is_refused(output: object, got: str, image: Tensor) -> None:
    with pytest.raises(ModelError, match=got):
        logits_in(output)
    with pytest.raises(ModelError, match=f"{got}: wrap it in a module") as error:
        Client(model=Model(module=Returning(lambda *_: output).double())).step(image, LABEL)
    assert "\n" not in str(error.value)


class Once(torch.autograd.Function):
    """The mean of squares, with a derivative that has no derivative."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.square().mean()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        slope: Tensor = 2 * ctx.saved_tensors[0] * grad / ctx.saved_tensors[0].numel()
        return slope


class OldStyle(torch.autograd.Function):
    """A loss that does not support `torch.func`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def of_once(logits: Tensor, labels: Tensor) -> Tensor:
    return Once.apply(logits - F.one_hot(labels, CLASSES))  # type: ignore[no-any-return, no-untyped-call]


LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "none": (
        lambda x, y: F.cross_entropy(x, y, reduction="none"),
        r"one number in a tensor, got shape \(2,\): give it reduction='mean'",
    ),
    "float": (lambda x, y: F.cross_entropy(x, y).item(), "one number in a tensor, got float"),
    "once": (of_once, "differentiated twice, got: .*once_differentiable: write them"),
    "detached": (lambda x, y: F.cross_entropy(x.detach(), y), "differentiated twice, got"),
    "old": (
        lambda x, y: F.cross_entropy(OldStyle.apply(x), y),  # type: ignore[no-untyped-call]
        "differentiated twice, got: .*autograd.Function",
    ),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_that_cannot_be_searched_is_refused(loss: str, image: Tensor) -> None:
    function, reason = LOSSES[loss]
    model = Model(module=Returning(lambda logits, other: logits).double(), loss=function)
    with pytest.raises(ModelError, match=reason) as error:
        Client(model=model).step(image, LABEL)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("loss", ["none", "once"])
def test_such_a_loss_is_told_for_a_captured_update_too(
    loss: str, batched: bool, image: Tensor
) -> None:
    function, reason = LOSSES[loss]
    module = Returning(lambda logits, other: logits).double()
    real, believed = Model(module=module), Model(module=module, loss=function)
    observation = Observation(
        update=FedSGD()(real, real.parameters, real.buffers, image, LABEL),
        model=believed,
        protocol=FedSGD(),
        ledger=Ledger(image_shape=(3, 8, 8), batch_size=1),
    )
    with pytest.raises(ModelError, match=reason):
        ig(restarts=2).with_steps(2)(observation, batched=batched)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "compile": lambda net: torch.compile(net),  # type: ignore[dict-item, return-value]
    "Opacus, per sample": opacus.GradSampleModule,
    "Opacus, ghost": GradSampleModuleFastGradientClipping,
    "Opacus, compiled": lambda net: torch.compile(opacus.GradSampleModule(net)),  # type: ignore[dict-item, return-value]
}


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_network_is_the_network(
    name: str,
    seeded: Seeded,
    image: Tensor,
    untouched: Callable[[nn.Module], AbstractContextManager[None]],
) -> None:
    def network() -> nn.Module:
        layers = [nn.Conv2d(3, 6, 3, 2), nn.GroupNorm(2, 6), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(6 * 9, CLASSES)).double()

    plain = Model(module=seeded(0, network))
    expected = Client(model=plain).step(image, LABEL)[0].update
    wrapped = WRAPPERS[name](seeded(0, network)).eval()
    with untouched(wrapped):
        model = Model(module=wrapped)
        upload, _ = Client(model=model).step(image, LABEL)
        found = ig(restarts=1).with_steps(2)(observe(upload))
    assert found.labels.tolist() == LABEL.tolist()
    assert list(upload.update) == list(expected)
    for one, other in zip(upload.update.tensors, expected.tensors, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
