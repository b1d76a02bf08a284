"""Scoring priors: a ceiling that sees the image, and distances between sets of images."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from typer.testing import CliRunner

from gifd.attacks import Attack, gifd, gifd_latent
from gifd.attacks.ceiling import Itself, ceiling, exposed
from gifd.campaign.prior_score import score_prior
from gifd.cli import app
from gifd.errors import InputError
from gifd.images import read_image, write_image
from gifd.interval import mean_interval, written
from gifd.metrics import PSNR, kernel_distance
from gifd.metrics.kernel import mmd
from gifd.metrics.stlpips import alexnet_features
from gifd.priors import Checkpoint, Generator, write_checkpoint
from gifd.priors.generator import IMAGE
from gifd.search import Feature, L1Ball
from golden.tiny import small_stylegan2

LABEL = torch.tensor([0])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prior(classes: int = 0) -> Checkpoint:
    tensors = small_stylegan2(classes, resolution=32)
    return Checkpoint(architecture="stylegan2", tensors=tensors, options={"mapping_lr": 0.01})


@pytest.fixture
def generator() -> Generator:
    return prior().generator(name="tiny", latent="z")


# -- the ceiling -------------------------------------------------------------------------


def test_an_exposed_image_is_its_own_update() -> None:
    images = torch.rand(2, 3, 8, 8, generator=rng())
    observation = exposed(images, torch.tensor([0, 0]))
    assert torch.equal(observation.update["image"], images)
    assert torch.equal(observation.replay(images, torch.tensor([0, 0]))["image"], images)
    assert observation.grants()["protocol"] == "Itself()"
    gradient = Itself().as_gradient(observation.update, observation.model.parameters)
    assert gradient is observation.update


def limited(attack: Attack) -> Attack:
    """Its ceiling, with features in balls of half their entry's norm."""
    phases = [
        dataclasses.replace(phase, constraints=dict.fromkeys(phase.constraints, L1Ball(share=0.5)))
        if isinstance(phase.space, Feature)
        else phase
        for phase in attack.phases
    ]
    return ceiling(dataclasses.replace(attack, phases=tuple(phases)))


def test_the_ceiling_finds_an_image_of_the_prior_and_more_domains_find_more(
    generator: Generator,
) -> None:
    inside = generator(generator.draw(1, rng(5)))[IMAGE].clamp(0, 1)
    outside = (
        torch.rand(1, 3, 4, 4, generator=rng()).repeat_interleave(8, 2).repeat_interleave(8, 3)
    )
    found = {}
    for name, truth in (("inside", inside), ("outside", outside)):
        for build in (gifd_latent, gifd):
            attack = limited(
                build(generator, preset="paper", best=True, restarts=1).with_steps(120)
            )
            answer = attack(exposed(truth, LABEL), seed=1)
            squared = float((answer.images - truth).square().sum())
            assert squared <= answer.distance * 1.0001  # clipping to [0, 1] only brings it nearer
            found[name, attack.name] = float(PSNR()(answer.images, truth))
    assert found["inside", "gifd-latent-ceiling"] > found["outside", "gifd-latent-ceiling"]
    assert found["outside", "gifd-ceiling"] > found["outside", "gifd-latent-ceiling"] + 1


def test_a_prior_is_scored_on_two_images(generator: Generator) -> None:
    images = torch.rand(2, 3, 32, 32, generator=rng())
    one, again = (score_prior(generator, images, steps=12, samples=8, seed=4) for _ in range(2))
    assert one.psnr == again.psnr
    assert one.shift == again.shift
    assert one.seeds == again.seeds
    assert {len(values) for values in (*one.psnr.values(), *one.stlpips.values())} == {2}
    for domain, fit in one.fits.items():
        assert PSNR()(fit, images).tolist() == one.psnr[domain]
    with pytest.raises(InputError, match="expected images of 3 x 32 x 32"):
        score_prior(generator, images[:, :, :16, :16], steps=12)
    conditional = prior(classes=3).generator(name="tiny", latent="w+")
    with pytest.raises(InputError, match="expected labels of 0 to 2"):
        score_prior(conditional, images, steps=12, labels=[0, 3])


def test_each_image_has_starts_of_its_own(generator: Generator) -> None:
    twice = torch.rand(1, 3, 32, 32, generator=rng()).repeat(2, 1, 1, 1)
    found = score_prior(generator, twice, steps=12, samples=8, seed=4)
    assert len(set(found.seeds)) == 2
    for values in found.psnr.values():
        assert values[0] != values[1]
    other = score_prior(generator, twice, steps=12, samples=8, seed=5)
    assert not set(other.seeds) & set(found.seeds)


# -- the distance between sets -----------------------------------------------------------


@given(st.integers(2, 5), st.integers(2, 5), st.integers(0, 100))
def test_mmd_is_its_definition(m: int, n: int, seed: int) -> None:
    x, y = torch.randn(m, 3, generator=rng(seed)), torch.randn(n, 3, generator=rng(seed + 1))

    def k(a: Tensor, b: Tensor) -> float:
        return (float(a.double() @ b.double()) + 1) ** 3

    def mean(pairs: list[float]) -> float:
        return sum(pairs) / len(pairs)

    expected = (
        mean([k(a, b) for a, b in itertools.permutations(x, 2)])
        + mean([k(a, b) for a, b in itertools.permutations(y, 2)])
        - 2 * mean([k(a, b) for a in x for b in y])
    )
    assert mmd(x, y) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def textures(seed: int, count: int, coarse: int) -> Tensor:
    noise = torch.rand(count, 3, coarse, coarse, generator=rng(seed))
    return torch.nn.functional.interpolate(noise, size=32, mode="bilinear").clamp(0, 1)


def test_the_kernel_distance_tells_sources_apart_and_not_draws() -> None:
    same = [kernel_distance(textures(s, 6, 4), textures(s + 50, 12, 4)) for s in range(4)]
    other = kernel_distance(textures(0, 6, 4), textures(1, 12, 16))
    assert abs(sum(same) / 4) < 0.1 * other
    assert min(same) < 0 < other  # unbiased: below 0 too
    with pytest.raises(InputError, match="at least two images"):
        kernel_distance(textures(0, 1, 4), textures(1, 4, 4))


def test_features_are_of_length_at_most_one_and_do_not_depend_on_the_batch() -> None:
    images = textures(0, 3, 8)
    features = alexnet_features(images)
    assert features.shape == (3, 1152)
    assert float(features.norm(dim=1).max()) <= 1
    assert torch.allclose(alexnet_features(images[1:2]), features[1:2], atol=1e-5)


def test_intervals() -> None:
    assert mean_interval([3.0]) == (3.0, None)
    mean, half = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert written([1.0, 2.0, 3.0]) == "2.00 ± 2.48"
    assert written([0.05]) == "0.0500"


# -- the command -------------------------------------------------------------------------


def album(folder: Path, side: int = 32) -> Path:
    folder.mkdir()
    for index in range(3):
        write_image(torch.rand(3, side, side, generator=rng(index)), folder / f"{index}.png")
    return folder


def test_priors_are_compared_on_the_command_line(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.safetensors" for name in ("one", "two")]
    write_checkpoint(prior(), files[0])
    write_checkpoint(prior(classes=3), files[1])
    folder, out = album(tmp_path / "album"), tmp_path / "out"
    arguments = ["prior", "score", *map(str, files), "--images", str(folder), "--limit", "2"]
    arguments += ["--steps", "8", "--samples", "4", "--labels", "([0-9])", "--out", str(out)]
    found = CliRunner().invoke(app, [*arguments, "--json"])
    assert found.exit_code == 0, found.output
    assert "two - one" in found.stderr
    report = json.loads(found.stdout)
    assert report["images"] == ["0.png", "2.png"]
    assert [p["prior"] for p in report["priors"]] == ["one", "two"]
    assert all(len(p["psnr"]["features"]) == 2 for p in report["priors"])
    sheet = read_image(out / "one.png", size=None)
    assert sheet.shape == (3, 96, 64)  # private, latent, features


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--labels", "x([0-9])"], "a class number below 1,000,000 by"),
        (["--match", "z*"], "got none"),
        (["--match", "0*"], "at least two images"),
    ],
)
def test_bad_comparisons_get_one_line(tmp_path: Path, options: list[str], reason: str) -> None:
    file = tmp_path / "one.safetensors"
    write_checkpoint(prior(), file)
    folder = album(tmp_path / "album")
    arguments = ["prior", "score", str(file), "--images", str(folder), *options]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 2, found.output
    assert reason in found.stderr
    assert found.stderr.strip().count("\n") == 0
