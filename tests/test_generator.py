"""A generator can be cut anywhere, is a frozen copy, and a real one gives known images."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from gifd.errors import InputError, WeightsError
from gifd.priors import Gaussian, Generator, Stage, State, dcgan, digiface_dcgan
from gifd.priors.dcgan import dcgan_stages

pytestmark = pytest.mark.numerical


def dcgan_tensors(
    seed: int, *, latent: int = 6, width: int = 2, channels: int = 3, doublings: int = 2
) -> dict[str, Tensor]:
    """Random weights of a small DCGAN, with nontrivial running statistics."""
    rng = torch.Generator().manual_seed(seed)
    stages = dcgan_stages(latent=latent, width=width, channels=channels, doublings=doublings)
    chain = nn.Sequential(*(module for stage in stages for module in stage))
    return {
        f"main.{name}": torch.rand(tensor.shape, generator=rng) + ("running_var" in name)
        if tensor.dtype.is_floating_point
        else tensor
        for name, tensor in chain.state_dict().items()
    }


def modules() -> list[nn.Module]:
    return [
        nn.Sequential(nn.ConvTranspose2d(8, 4, 4), nn.BatchNorm2d(4), nn.ReLU()),
        nn.ConvTranspose2d(4, 4, 4, 2, 1),
        nn.Sequential(nn.Conv2d(4, 3, 3, padding=1), nn.Tanh()),
    ]


class Skip(Stage):
    """A stage with two streams: features `x`, and an image `rgb` that is added to as it grows."""

    searchable = ("x", "rgb")

    def __init__(self, last: bool = False) -> None:
        super().__init__()
        self.grow = nn.ConvTranspose2d(4, 4, 2, 2)
        self.paint = nn.Conv2d(4, 3, 1)
        self.last = last

    def forward(self, state: State) -> State:
        x = torch.tanh(self.grow(state["x"]))
        rgb = nn.functional.interpolate(state["rgb"], scale_factor=2) + self.paint(x)
        return {"x": torch.sigmoid(rgb)} if self.last else {**state, "x": x, "rgb": rgb}


def two_streams(count: int, rng: torch.Generator) -> State:
    return {
        "x": torch.randn(count, 4, 2, 2, generator=rng),
        "rgb": torch.randn(count, 3, 2, 2, generator=rng),
    }


def skipping() -> Generator:
    return Generator([Skip(), Skip(), Skip(last=True)], latent=two_streams, image_range=(0.0, 1.0))


def test_averaging_down_leaves_the_generator_as_it_was() -> None:
    whole = dcgan(dcgan_tensors(0))
    small = whole.averaged(4)
    state = whole.draw(2, torch.Generator().manual_seed(0))
    side = whole.image_shape[1] // 4
    mean = torch.nn.functional.avg_pool2d(whole(state)["x"], side)
    assert torch.allclose(small(state)["x"], mean, atol=1e-6)
    assert small.image_shape == (whole.image_shape[0], 4, 4)
    assert whole(state)["x"].shape[1:] == whole.image_shape
    assert whole.averaged(None) is whole


GENERATORS: dict[str, Callable[[], Generator]] = {
    "dcgan": lambda: dcgan(dcgan_tensors(0)),
    "dcgan of four pixels": lambda: dcgan(dcgan_tensors(1, doublings=1, channels=1)),
    "user's modules": lambda: Generator(modules(), latent=(8, 1, 1)),
    "user's stages with a carried state": skipping,
}


@pytest.mark.parametrize("make", GENERATORS.values(), ids=GENERATORS)
def test_cut_anywhere_it_is_the_same_function(make: Callable[[], Generator]) -> None:
    generator = make()
    z = generator.latent(2, torch.Generator().manual_seed(1))
    whole = generator(z)["x"]
    assert whole.shape == (2, *generator.image_shape)
    assert 0 <= whole.min() < whole.max() <= 1
    for k in range(len(generator) + 1):
        assert torch.equal(generator[k:](generator[:k](z))["x"], whole)
    assert generator[:0](z) is z


@given(st.integers(0, 3), st.integers(0, 3))
def test_stages_between_two_cuts(first: int, last: int) -> None:
    generator = Generator(modules(), latent=(8, 1, 1))
    z = generator.latent(1, torch.Generator().manual_seed(1))
    first, last = sorted((first, last))
    between = generator[first:last](generator[:first](z))["x"]
    assert torch.equal(between, generator[:last](z)["x"])


def test_a_cut_in_leaps_is_refused() -> None:
    with pytest.raises(InputError, match="without a step"):
        skipping()[::2]


def test_each_cut_names_what_may_be_searched() -> None:
    generator = skipping()
    assert [generator.searchable(k) for k in range(3)] == [("x",), ("x", "rgb"), ("x", "rgb")]
    chosen = Generator(modules(), latent=(8, 1, 1), searchable=())
    assert [chosen.searchable(k) for k in range(4)] == [(), ("x",), ("x",), ("x",)]
    rescaled = Generator([Skip(), Skip()], latent=two_streams)
    assert rescaled.searchable(2) == ("x", "rgb")


def test_the_users_modules_stay_as_they_are() -> None:
    own = nn.ModuleList(modules()).train()
    before = copy.deepcopy(own.state_dict())
    generator = Generator(list(own), latent=(8, 1, 1))
    first = generator.sample(2, seed=0)
    assert all(part.training for part in own.modules())
    assert all(p.requires_grad for p in own.parameters())
    assert all(torch.equal(own.state_dict()[name], before[name]) for name in before)
    for parameter in own.parameters():
        parameter.data.add_(1.0)
    assert torch.equal(generator.sample(2, seed=0), first)
    for stage in generator.stages:
        assert not any(part.training for part in stage.modules())
        assert not any(parameter.requires_grad for parameter in stage.parameters())


@pytest.mark.parametrize("make", GENERATORS.values(), ids=GENERATORS)
def test_samples_follow_the_seed_alone(make: Callable[[], Generator]) -> None:
    generator = make()
    torch.manual_seed(0)
    first = generator.sample(3, seed=5)
    torch.manual_seed(1)
    assert torch.equal(generator.sample(3, seed=5), first)
    assert not torch.equal(generator.sample(3, seed=6), first)
    assert torch.equal(generator.to("cpu").sample(3, seed=5), first)


def test_latents_are_standard_normal() -> None:
    x = Gaussian(shape=(50, 4))(100, torch.Generator().manual_seed(0))["x"]
    assert x.shape == (100, 50, 4)
    assert float(x.mean()) == pytest.approx(0, abs=0.03)
    assert float(x.std()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("image_range", [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)])
def test_images_are_brought_to_zero_and_one(image_range: tuple[float, float]) -> None:
    low, high = image_range
    bounded = nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (-1, 1, 2, 2)), nn.Sigmoid())
    raw = Generator([bounded], latent=(1, 2, 2), image_range=(0.0, 1.0)).sample(3, seed=0)

    class Stretch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return low + (high - low) * x

    stretched = Generator([bounded, Stretch()], latent=(1, 2, 2), image_range=image_range)
    assert torch.allclose(stretched.sample(3, seed=0), raw, atol=1e-6)


@pytest.mark.parametrize(
    ("stages", "reason"),
    [([], "at least one stage"), ([nn.Flatten()], r"images \(B, C, H, W\).* shape \(1, 8\)")],
)
def test_a_chain_that_makes_no_images(stages: list[nn.Module], reason: str) -> None:
    with pytest.raises(InputError, match=reason) as error:
        Generator(stages, latent=(8, 1, 1))
    assert "\n" not in str(error.value)


def test_its_words() -> None:
    assert repr(dcgan(dcgan_tensors(0))) == "Generator('dcgan', 3 stages, 3 x 16 x 16)"


# -- the weights of a DCGAN ------------------------------------------------------------


def straight(tensors: dict[str, Tensor], z: Tensor) -> Tensor:
    """A DCGAN in plain functions, without modules."""
    kernels = [name for name, tensor in tensors.items() if tensor.ndim == 4]
    x = z
    for depth, name in enumerate(kernels):
        stride, padding = (1, 0) if depth == 0 else (2, 1)
        x = nn.functional.conv_transpose2d(x, tensors[name], stride=stride, padding=padding)
        if name != kernels[-1]:
            norm = f"main.{3 * depth + 1}."
            mean, var = tensors[norm + "running_mean"], tensors[norm + "running_var"]
            scale = tensors[norm + "weight"] / (var + 1e-5).sqrt()
            x = (x - mean[:, None, None]) * scale[:, None, None]
            x = (x + tensors[norm + "bias"][:, None, None]).clamp_min(0)
    return (x.tanh() + 1) / 2


@pytest.mark.parametrize(
    ("latent", "width", "channels", "doublings"), [(6, 2, 3, 2), (3, 4, 1, 1), (5, 1, 3, 3)]
)
def test_a_dcgan_is_read_off_its_weights(
    latent: int, width: int, channels: int, doublings: int
) -> None:
    tensors = dcgan_tensors(7, latent=latent, width=width, channels=channels, doublings=doublings)
    generator = dcgan({name: t / (1 + 9 * (t.ndim == 4)) for name, t in tensors.items()})
    side = 4 * 2**doublings
    assert generator.image_shape == (channels, side, side)
    assert len(generator) == doublings + 1
    z = generator.latent(2, torch.Generator().manual_seed(0))
    scaled = {name: t / (1 + 9 * (t.ndim == 4)) for name, t in tensors.items()}
    assert torch.allclose(generator(z)["x"], straight(scaled, z["x"]), atol=1e-5)


def without(name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in dcgan_tensors(0).items() if key != name}


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, "expected DCGAN weights"),
        ({"fc.weight": torch.zeros(2, 2)}, "expected DCGAN weights"),
        ({f"main.{i}.weight": torch.zeros(2, 2, 4, 4) for i in (0, 2)}, "expected DCGAN weights"),
        (without("main.3.weight"), "expected DCGAN weights"),
        (without("main.1.running_mean"), "running_mean"),
        ({**dcgan_tensors(0), "main.3.weight": torch.zeros(9, 2, 4, 4)}, "size mismatch"),
        ({**dcgan_tensors(0), "main.0.weight": torch.zeros(6, 4, 3, 3)}, "size mismatch"),
    ],
)
def test_weights_that_are_no_dcgan(tensors: dict[str, Tensor], reason: str) -> None:
    with pytest.raises(WeightsError, match=reason) as error:
        dcgan(tensors)
    assert "\n" not in str(error.value)


def test_a_file_of_other_weights(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file({"fc.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(WeightsError, match="expected DCGAN weights"):
        digiface_dcgan(path=path)


@pytest.fixture(scope="module")
def digiface() -> Generator:
    try:
        return digiface_dcgan()
    except WeightsError as error:
        if "no network" not in str(error):
            raise
        pytest.skip(f"the DigiFace weights cannot be fetched here: {error}")


def test_the_faces_are_those_of_the_published_weights(digiface: Generator) -> None:
    """Reference numbers computed from the published file, in float64."""
    z = 1.4 * torch.sin(0.7 * torch.arange(200, dtype=torch.float64) + 0.3)
    images = digiface({"x": z.reshape(2, 100, 1, 1).float()})["x"]
    assert images.shape == (2, 3, 64, 64)
    assert images.mean((2, 3)).flatten().tolist() == pytest.approx(
        [
            0.3296962154539275,
            0.2653267585765321,
            0.27855818795700027,
            0.49070073753951365,
            0.3805091344213689,
            0.3541022016449009,
        ],
        rel=1e-4,
    )
    pixels = [images[0, 0, 32, 32], images[1, 2, 10, 50], images[0, 1, 63, 0], images[1, 0, 40, 20]]
    assert [float(pixel) for pixel in pixels] == pytest.approx(
        [0.49166169121312603, 0.17095560672583748, 0.41047441417175135, 0.6666963314026575],
        rel=1e-4,
    )


def test_the_faces_can_be_cut(digiface: Generator) -> None:
    assert repr(digiface) == "Generator('digiface-dcgan', 5 stages, 3 x 64 x 64)"
    z = digiface.latent(1, torch.Generator().manual_seed(0))
    whole = digiface(z)["x"]
    for k in range(1, 5):
        assert torch.equal(digiface[k:](digiface[:k](z))["x"], whole)
