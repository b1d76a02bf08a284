"""The price of a defence: a short federation that learns, and the picture of both sides."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from gifd.campaign.point import Point, read_points
from gifd.campaign.utility import utility
from gifd.cli import app
from gifd.cli.frontier import cells
from gifd.defenses import DPSGD, Noise, Precode, Sparsify
from gifd.errors import InputError
from gifd.images import write_image
from gifd.model import Model
from gifd.report.frontier import write_frontier
from gifd.training import ImageSet
from gifd.victims import ConvNet


def stripes(count: int = 240, side: int = 16) -> ImageSet:
    """Three classes that a small network tells apart: stripes across, down, and none."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (count,), generator=rng)
    wave = (torch.arange(side) % 4 < 2).float()
    kinds = torch.stack(
        [wave.expand(side, side), wave.expand(side, side).T, torch.full((side, side), 0.5)]
    )
    noise = 0.2 * torch.rand(count, 3, side, side, generator=rng)
    images = ((0.8 * kinds[labels][:, None] + noise) * 255).to(torch.uint8)
    return ImageSet(images=images, labels=labels, classes=("across", "down", "none"))


@pytest.fixture(scope="module")
def pupil() -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(module=ConvNet(3, width=8).eval())


SHORT = {"rounds": 30, "clients": 3, "batch": 8, "lr": 1e-2}


def test_a_federation_learns_and_noise_costs(pupil: Model) -> None:
    data = stripes()
    free = utility(pupil, data, **SHORT)  # type: ignore[arg-type]
    assert free.accuracy > 0.8
    assert free.cosine == pytest.approx(1.0)
    assert free.length == pytest.approx(1.0)
    assert free.epsilon is None
    drowned = utility(pupil, data, (Noise(std=10.0),), **SHORT)  # type: ignore[arg-type]
    assert drowned.accuracy < free.accuracy - 0.2
    assert drowned.cosine is not None
    assert abs(drowned.cosine) < 0.1
    again = utility(pupil, data, **SHORT)  # type: ignore[arg-type]
    assert again == free, "same seed, same result"


def test_what_is_kept_of_an_update_is_measured(pupil: Model) -> None:
    sparse = utility(pupil, stripes(), (Sparsify(rate=0.9),), **SHORT | {"rounds": 2})  # type: ignore[arg-type]
    assert sparse.cosine is not None
    assert sparse.length is not None
    assert 0.5 < sparse.cosine < 0.99999
    assert sparse.length == pytest.approx(sparse.cosine, abs=1e-5), "what is left is its own part"
    other = utility(pupil, stripes(), (Precode(width=4),), **SHORT | {"rounds": 2})  # type: ignore[arg-type]
    assert other.cosine is None


def test_dpsgd_tells_its_epsilon(pupil: Model) -> None:
    found = utility(pupil, stripes(), (DPSGD(noise=1.0),), **SHORT | {"rounds": 3})  # type: ignore[arg-type]
    expected = DPSGD(noise=1.0).epsilon(steps=3, sample_rate=24 / 192)
    assert found.epsilon == pytest.approx(expected)


def test_data_that_cannot_teach_is_refused(pupil: Model) -> None:
    with pytest.raises(InputError, match="labelled images"):
        utility(pupil, ImageSet(images=stripes().images))
    with pytest.raises(InputError, match="at least 16 images for each of 8 clients"):
        utility(pupil, stripes(40))


def test_a_grid_is_every_strength() -> None:
    assert cells("noise:std=0.1/0.2") == [("noise", "std=0.1"), ("noise", "std=0.2")]
    assert cells("sparsify:rate=0.5/0.9,per_layer=true") == [
        ("sparsify", "rate=0.5,per_layer=true"),
        ("sparsify", "rate=0.9,per_layer=true"),
    ]
    assert cells("ats") == [("ats", "")]
    with pytest.raises(InputError, match="above 0"):
        cells("noise:std=0.1/-1")


def point(defense: str, strength: str, attacker: str, psnr: float, accuracy: float) -> Point:
    return Point(
        defense=defense,
        strength=strength,
        attack="gifd",
        preset="paper",
        attacker=attacker,
        evaluations=100,
        victim="convnet",
        seed=0,
        rounds=10,
        images=["a", "b"],
        psnr=[psnr, psnr + 1],
        ssim=[0.1, 0.2],
        stlpips=[0.5, None],
        accuracy=accuracy,
        cosine=None,
        length=1.0,
        epsilon=None,
    )


def test_the_picture_has_every_defence_and_needs_no_network(tmp_path: Path) -> None:
    points = [
        point("none", "", "naive", 20.0, 0.9),
        point("noise", "std=<b>", "naive", 15.0, 0.5),
        point("noise", "std=<b>", "told", 16.0, 0.5),
    ]
    page = write_frontier(points, tmp_path).read_text(encoding="utf-8")
    assert "std=&lt;b&gt;" in page
    assert "http" not in page.split("base64,")[0]
    with Image.open(tmp_path / "frontier.png") as picture:
        assert picture.size[0] > 1000
    for none in ([], points[1:]):
        with pytest.raises(InputError, match="at least one point, of no defence"):
            write_frontier(none, tmp_path)


def test_a_change_is_paired_over_the_images() -> None:
    bare, noisy = point("none", "", "naive", 20.0, 0.5), point("noise", "", "told", 17.0, 0.4)
    assert noisy.change(bare, "psnr") == pytest.approx((-3.0, 0.0), abs=1e-6)
    assert noisy.mean("psnr")[1] > 1, "the images themselves differ"
    assert noisy.change(bare, "stlpips") == (0.0, 0.0), "one image of two has both values"


def test_the_command_line_goes_on_where_it_stopped(
    tmp_path: Path, pictures: Callable[..., torch.Tensor]
) -> None:
    data, private, out = tmp_path / "data", tmp_path / "private", tmp_path / "out"
    teach = stripes(120)
    assert teach.labels is not None
    for i, (image, label) in enumerate(zip(teach.images, teach.labels.tolist(), strict=True)):
        write_image(image.float() / 255, data / f"{i:03d}_class{label}.png")
    for i, image in enumerate(pictures(0, 2, 32)):
        write_image(image, private / f"{i}_class{i}.png")
    grid = ["--grid", "sparsify:rate=0.5/0.9", "--attack", "ig", "--preset", "paper"]
    small = ["--size", "32", "--data-size", "16", "--rounds", "3", "--clients", "2"]
    small += ["--batch-size", "4", "--evaluations", "4", "--limit", "2"]
    arguments = ["frontier", str(private), "--data", str(data), *grid, *small, "--out", str(out)]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    points = read_points(out / "frontier.jsonl")
    assert [(p.defense, p.strength, p.attacker) for p in points] == [
        ("none", "", "naive"),
        ("sparsify", "rate=0.5", "naive"),
        ("sparsify", "rate=0.5", "told"),
        ("sparsify", "rate=0.9", "naive"),
        ("sparsify", "rate=0.9", "told"),
    ]
    assert all(len(p.psnr) == 2 for p in points)
    assert (out / "frontier.html").exists()
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0, again.output
    assert read_points(out / "frontier.jsonl") == points, "nothing is computed twice"
    other = CliRunner().invoke(app, [*arguments, "--seed", "3"])
    assert other.exit_code == 2
    assert "points of seed 3, got one of 0: choose another --out" in other.stderr
    bad = CliRunner().invoke(app, [*arguments, "--grid", "noize:std=1"])
    assert bad.exit_code == 2
    assert "known defence" in bad.stderr
