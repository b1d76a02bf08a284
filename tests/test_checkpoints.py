"""StyleGAN2 and BigGAN-deep against reference code, at every cut, from every file format."""

import importlib
import io
import os
import pickle
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gifd.errors import GifdError, InputError, WeightsError
from gifd.priors import Generator, State, read_checkpoint, stylegan2, write_checkpoint
from gifd.priors.biggan import biggan, biggan_tensors
from gifd.priors.generator import IMAGE
from gifd.priors.stylegan2 import LatentSpace, StyleLatent
from golden.formula import apart, digest, numbers, probe
from golden.nvidia import Pickled, as_pkl, nvidia_modules
from golden.tiny import GOLDEN, as_hugging_face, named, small_stylegan2

LABELS = torch.tensor([1, 3])


# -- files of every format ---------------------------------------------------------------


@pytest.fixture
def nvidia() -> Iterator[None]:
    """A module in which pickle finds the function that NVIDIA's files name."""
    with nvidia_modules():
        yield


def as_rosinality(tensors: Mapping[str, Tensor], path: Path) -> Path:
    content = {"g_ema": dict(tensors), "latent_avg": torch.zeros(12), "args": Namespace(size=16)}
    torch.save(content, path)
    return path


def as_ours(tensors: Mapping[str, Tensor], folder: Path) -> Path:
    checkpoint = read_checkpoint(as_hugging_face(tensors, folder))
    write_checkpoint(checkpoint, folder / "ours.safetensors")
    return folder / "ours.safetensors"


FILES: dict[str, tuple[str, Callable[[Path], Path], dict[str, Any]]] = {
    "NVIDIA pickle": (
        "stylegan2-ada",
        lambda folder: as_pkl(named("stylegan2-ada"), folder / "net.pkl", conv_clamp=2.0),
        {"latent": "z", "noise": "const"},
    ),
    "NVIDIA pickle, conditional": (
        "stylegan2-ada conditional",
        lambda f: as_pkl(named("stylegan2-ada conditional"), f / "net.pkl", conv_clamp=2),
        {"latent": "z", "noise": "const"},
    ),
    "rosinality": (
        "rosinality",
        lambda folder: as_rosinality(named("rosinality"), folder / "net.pt"),
        {"latent": "z", "noise": "const"},
    ),
    "Hugging Face": (
        "biggan truncation 1.0",
        lambda folder: as_hugging_face(named("biggan truncation 1.0"), folder),
        {},
    ),
    "Hugging Face, truncated": (
        "biggan truncation 0.43",
        lambda folder: as_hugging_face(named("biggan truncation 0.43"), folder),
        {"truncation": 0.43},
    ),
    "safetensors": (
        "biggan truncation 1.0",
        lambda folder: as_ours(named("biggan truncation 1.0"), folder),
        {},
    ),
}


@pytest.mark.parametrize("file", FILES)
def test_every_format_gives_the_references_images_and_gradients(
    file: str, tmp_path: Path, nvidia: None
) -> None:
    reference, write, options = FILES[file]
    golden = GOLDEN[reference]
    g = read_checkpoint(write(tmp_path)).generator(name=file, **options)
    state = dict(g.draw(2, torch.Generator().manual_seed(0), LABELS))
    state[IMAGE] = numbers("z", tuple(state[IMAGE].shape))
    assert apart(digest(2 * g(state)[IMAGE] - 1), golden["images"]) < 1e-5
    for k, expected in enumerate(golden["gradients"]):
        at = dict(g[:k](state))
        x = at[IMAGE].detach().requires_grad_()
        images = 2 * g[k:]({**at, IMAGE: x})[IMAGE] - 1
        (slope,) = torch.autograd.grad(probe(images), x)
        assert apart(digest(slope), expected) < 1e-5, f"cut {k}"
    assert len(golden["gradients"]) == len(g)


# -- cuts --------------------------------------------------------------------------------


def every_generator() -> dict[str, Callable[[], Generator]]:
    built: dict[str, Callable[[], Generator]] = {
        "biggan": lambda: biggan(named("biggan truncation 1.0")),
        "biggan, area": lambda: biggan(named("biggan truncation 1.0"), area=8),
    }
    spaces: tuple[LatentSpace, ...] = ("z", "w", "w+")
    for space in spaces:
        for classes in (0, 4):
            weights = small_stylegan2(classes)
            built[f"stylegan2, {space}, {classes} classes"] = partial(
                stylegan2, weights, latent=space
            )
    built["stylegan2, early exit"] = lambda: stylegan2(small_stylegan2(), resolution=8)
    built["stylegan2, first block"] = lambda: stylegan2(small_stylegan2(), resolution=4)
    built["stylegan2, area"] = lambda: stylegan2(small_stylegan2(), area=8, noise="const")
    return built


@pytest.mark.parametrize("name", every_generator())
def test_cut_anywhere_and_joined_again_it_is_the_same(name: str) -> None:
    g = every_generator()[name]()
    labels = torch.tensor([1, 3, 0]) if g.classes else None
    state = g.draw(3, torch.Generator().manual_seed(5), labels)
    whole = g(state)[IMAGE]
    assert whole.shape[1:] == g.image_shape
    for k in range(len(g) + 1):
        behind = g[:k](state)
        assert torch.equal(g[k:](behind)[IMAGE], whole)
        for variable in g.searchable(k):
            other = {**behind, variable: behind[variable] + 0.5}
            assert not torch.equal(g[k:](other)[IMAGE], whole), f"{variable} at cut {k}"


@pytest.mark.parametrize("name", every_generator())
def test_samples_do_not_hear_of_each_other(name: str) -> None:
    g = every_generator()[name]()
    labels = torch.tensor([1, 3, 0]) if g.classes else None
    state = g.draw(3, torch.Generator().manual_seed(5), labels)
    one: State = {key: tensor[1:2] for key, tensor in state.items()}
    assert torch.allclose(g(one)[IMAGE], g(state)[IMAGE][1:2], atol=1e-5)
    batched = torch.func.vmap(lambda s: g({k: t[None] for k, t in s.items()})[IMAGE][0])(state)
    assert torch.allclose(batched, g(state)[IMAGE], atol=1e-5)


# -- StyleGAN2's own ----------------------------------------------------------------------


def test_an_early_exit_is_the_rgb_of_that_resolution() -> None:
    whole = stylegan2(small_stylegan2(), noise="const")
    early = stylegan2(small_stylegan2(), noise="const", resolution=8)
    state = whole.draw(2, torch.Generator().manual_seed(0))
    mine = {name: tensor for name, tensor in state.items() if name in early.draw(1, _rng(0))}
    mine[IMAGE] = state[IMAGE][:, :4]
    rgb = whole[:2](state)["rgb"]
    assert torch.equal(early(mine)[IMAGE], (rgb + 1) / 2)


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_w_plus_is_distributed_like_the_mapping_networks_w() -> None:
    g = stylegan2(small_stylegan2())
    latent = g.latent
    assert isinstance(latent, StyleLatent)
    drawn = g.draw(20_000, _rng(1))[IMAGE][:, 2]
    with torch.no_grad():
        w = latent.mapping(torch.randn(20_000, 7, generator=_rng(2)), None)
    back = nn.functional.leaky_relu(w, 5.0), nn.functional.leaky_relu(drawn, 5.0)
    assert torch.allclose(back[0].mean(0), back[1].mean(0), atol=0.05 * float(back[0].std()))
    assert torch.allclose(back[0].std(0), back[1].std(0), rtol=0.05)


def test_noise_is_drawn_or_the_networks_own() -> None:
    tensors = small_stylegan2()
    own = stylegan2(tensors, noise="const").draw(2, _rng(0))
    assert torch.equal(own["noise1"][1, 0], tensors["synthesis.b8.conv0.noise_const"])
    drawn = stylegan2(tensors).draw(2, _rng(0))
    assert not torch.equal(drawn["noise1"][0], drawn["noise1"][1])


def test_only_what_is_asked_for_is_optimised_beside_a_feature() -> None:
    assert stylegan2(small_stylegan2(), optimise=()).searchable(1) == (IMAGE,)
    assert stylegan2(small_stylegan2(), optimise=("w",)).searchable(1) == (IMAGE, "w")
    assert stylegan2(small_stylegan2()).searchable(1) == (IMAGE, "w", "noise1", "noise2", *rest(3))
    assert stylegan2(small_stylegan2()).searchable(0) == (IMAGE, "noise0", *rest(1))


def rest(first: int) -> list[str]:
    return [f"noise{i}" for i in range(first, 5)]


@pytest.mark.parametrize(("resolution", "stages"), [(128, 11), (256, 13), (512, 15)])
def test_the_official_biggans_have_the_papers_layers(resolution: int, stages: int) -> None:
    g = biggan(biggan_tensors(resolution, width=8, z=6, classes=5), area=resolution // 4)
    assert (len(g), g.image_shape) == (stages, (3, resolution // 4, resolution // 4))
    with pytest.raises(InputError, match="128, 256, 512"):
        biggan_tensors(64)


# -- bad files ----------------------------------------------------------------------------


def one_line(error: GifdError) -> str:
    assert "\n" not in str(error)
    return str(error)


class Evil:
    """A pickle that would run a command."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {EVIDENCE}",)


EVIDENCE = "gifd-test-evidence"


@pytest.mark.parametrize("suffix", [".pkl", ".pt", ".bin", ".safetensors"])
def test_malicious_files_are_refused_and_nothing_runs(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"net{suffix}"
    path.write_bytes(pickle.dumps({"G_ema": Evil()}))
    with pytest.raises(WeightsError) as error:
        read_checkpoint(path)
    one_line(error.value)
    assert not (tmp_path / EVIDENCE).exists()


def test_code_inside_a_network_is_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nvidia: None
) -> None:
    monkeypatch.chdir(tmp_path)
    path = as_pkl(named("stylegan2-ada"), tmp_path / "net.pkl", hook=Evil())
    with pytest.raises(WeightsError, match=r"asks for 'posix\.system'"):
        read_checkpoint(path)
    assert not (tmp_path / EVIDENCE).exists()


MODULES = "builtins operator functools os posix sys types codecs importlib torch numpy collections"
HARMLESS = {
    "builtins.set",
    "collections.OrderedDict",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"torch.{name}" for name in ("Size", "device", "contiguous_format", "channels_last")),
    *(f"torch.{name}" for name in ("float16", "bfloat16", "float32", "float64")),
}


@pytest.mark.parametrize("module", MODULES.split())
def test_of_a_modules_names_only_harmless_ones_may_be_asked_for(
    module: str, tmp_path: Path
) -> None:
    """`getattr` alone would be enough to reach everything else."""
    path, taken = tmp_path / "net.pkl", set()
    for name in dir(importlib.import_module(module)):
        path.write_bytes(f"c{module}\n{name}\n.".encode())
        with pytest.raises(WeightsError) as error:
            read_checkpoint(path)
        if f"asks for '{module}.{name}'" not in str(error.value):
            taken.add(f"{module}.{name}")
    assert taken == {name for name in HARMLESS if name.startswith(f"{module}.")}


def test_tensors_cannot_reach_beyond_their_storage(tmp_path: Path) -> None:
    class Wide:
        def __reduce__(self) -> tuple[object, ...]:
            storage = torch.zeros(4).storage()  # type: ignore[no-untyped-call]
            return torch._utils._rebuild_tensor_v2, (
                storage,
                0,
                (1000,),
                (1,),
                False,
                OrderedDict(),
            )

    path = tmp_path / "net.pkl"
    path.write_bytes(pickle.dumps({"G_ema": Wide()}))
    with pytest.raises(WeightsError, match="larger than its storage"):
        read_checkpoint(path)


@pytest.mark.parametrize("file", FILES)
def test_truncated_files_are_refused(file: str, tmp_path: Path, nvidia: None) -> None:
    path = FILES[file][1](tmp_path)
    path = path / "pytorch_model.bin" if path.is_dir() else path
    content = path.read_bytes()
    for share in (0.0, 0.3, 0.97):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(WeightsError) as error:
            read_checkpoint(path)
        one_line(error.value)


def without(tensors: Mapping[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def misshapen(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {**tensors, name: torch.zeros(3, 3)}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: stylegan2({}), "expected StyleGAN2 weights"),
        (lambda: stylegan2(named("biggan truncation 1.0")), "expected StyleGAN2 weights"),
        (
            lambda: stylegan2(without(small_stylegan2(), "synthesis.b8.torgb.weight")),
            "synthesis.b8.torgb.weight",
        ),
        (lambda: stylegan2(misshapen(small_stylegan2(), "synthesis.b8.conv1.bias")), "conv1.bias"),
        (lambda: stylegan2(small_stylegan2(), resolution=12), "resolution of"),
        (lambda: biggan({}), "expected BigGAN-deep weights"),
        (lambda: biggan(small_stylegan2()), "expected BigGAN-deep weights"),
        (
            lambda: biggan(
                without(named("biggan truncation 1.0"), "generator.layers.0.conv_1.weight_u")
            ),
            "conv_1.weight_u",
        ),
        (
            lambda: biggan(
                without(named("biggan truncation 1.0"), "generator.layers.0.bn_1.running_vars")
            ),
            "running_vars",
        ),
        (lambda: biggan(named("biggan truncation 1.0"), truncation=0.0), "truncation"),
    ],
)
def test_weights_of_something_else_are_named(make: Callable[[], Generator], reason: str) -> None:
    with pytest.raises((WeightsError, InputError), match=reason) as error:
        make()
    one_line(error.value)


@pytest.mark.parametrize("name", ["net.pt", "net.pkl", "net.safetensors"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="found none at"):
        read_checkpoint(tmp_path / name)


def test_a_discriminator_or_an_unknown_network_is_named(tmp_path: Path, nvidia: None) -> None:
    net = Pickled({"b4.conv.weight": torch.zeros(2, 2)}, "Discriminator", {})
    path = tmp_path / "net.pkl"
    path.write_bytes(pickle.dumps({"D": net}))
    with pytest.raises(WeightsError, match=r"D \(Discriminator\)"):
        read_checkpoint(path)
    torch.save({"encoder.weight": torch.zeros(2)}, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match="no generator we know"):
        read_checkpoint(tmp_path / "net.pt")


def test_a_label_that_the_prior_does_not_know_is_named() -> None:
    g = biggan(named("biggan truncation 1.0"))
    with pytest.raises(InputError, match="labels of 0 to 6") as error:
        g.draw(1, _rng(0), torch.tensor([7]))
    one_line(error.value)
    assert set(g.draw(60, _rng(0))["label"].tolist()) == set(range(7))


def test_a_safetensors_file_of_unknown_kind_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    metadata = {"format": "gifd prior", "architecture": "vae", "options": "{}"}
    save_file({"a": torch.zeros(1)}, path, metadata)
    with pytest.raises(WeightsError, match="got 'vae'"):
        read_checkpoint(path)
    metadata = {**metadata, "architecture": "dcgan", "options": '{"name": "x"}'}
    save_file({"a": torch.zeros(1)}, path, metadata)
    with pytest.raises(WeightsError, match="with the options"):
        read_checkpoint(path)
    with pytest.raises(InputError, match=r"ends in \.safetensors"):
        write_checkpoint(read_checkpoint(saved(tmp_path)), tmp_path / "net.pt")


def saved(folder: Path) -> Path:
    buffer = io.BytesIO()
    torch.save(small_stylegan2(), buffer)
    path = folder / "ours.pt"
    path.write_bytes(buffer.getvalue())
    return path
