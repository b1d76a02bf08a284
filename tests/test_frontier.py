"""The cost of a defence: a short federation, and the plot of leakage against accuracy."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from gifd.attacker.observation import Observation
from gifd.campaign.point import Point
from gifd.campaign.trial import Trial
from gifd.campaign.utility import utility
from gifd.cli import app
from gifd.cli.frontier import cells
from gifd.errors import InputError
from gifd.federation.defenses import DPSGD, Noise, Precode, Sparsify
from gifd.federation.secret import Secret
from gifd.images import write_image
from gifd.model import Model
from gifd.report.frontier import write_frontier
from gifd.training import ImageSet
from gifd.victims import ConvNet


def stripes(count: int = 240, side: int = 16) -> ImageSet:
    """Three classes that a small network can separate: horizontal, vertical and no stripes."""
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
        point("none", "", "static", 20.0, 0.9),
        point("noise", "std=<b>", "static", 15.0, 0.5),
        point("noise", "std=<b>", "adaptive", 16.0, 0.5),
    ]
    page = write_frontier(points, tmp_path).read_text(encoding="utf-8")
    assert "std=&lt;b&gt;" in page
    assert "http" not in page.split("base64,")[0]
    with Image.open(tmp_path / "frontier.png") as picture:
        assert picture.size[0] > 1000
    for none in ([], points[1:]):
        with pytest.raises(InputError, match="at least one point without a defence"):
            write_frontier(none, tmp_path)


def test_the_attackers_of_old_points_have_their_names_of_today(tmp_path: Path) -> None:
    points = [
        Point.model_validate_json(point("none", "", "naive", 20.0, 0.9).model_dump_json()),
        Point.model_validate(point("noise", "std=1", "told", 16.0, 0.5).model_dump()),
        point("noise", "std=1", "estimated", 16.0, 0.5),
    ]
    assert [each.attacker for each in points] == ["static", "adaptive", "estimated"]
    write_frontier(points, tmp_path)
    assert [row[2] for row in points_of(tmp_path)] == ["", "adaptive", "estimated"]


def test_a_change_is_paired_over_the_images() -> None:
    bare, noisy = point("none", "", "static", 20.0, 0.5), point("noise", "", "adaptive", 17.0, 0.4)
    assert noisy.change(bare, "psnr") == pytest.approx((-3.0, 0.0), abs=1e-6)
    assert noisy.mean("psnr")[1] > 1, "the images themselves differ"
    assert noisy.change(bare, "stlpips") == (0.0, 0.0), "one image of two has both values"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two private images and a data set, as arguments."""
    root = tmp_path_factory.mktemp("frontier")
    teach, rng = stripes(60), torch.Generator().manual_seed(1)
    assert teach.labels is not None
    for i, (image, label) in enumerate(zip(teach.images, teach.labels.tolist(), strict=True)):
        write_image(image.float() / 255, root / "data" / f"{i:03d}_class{label}.png")
    for i in range(2):
        write_image(torch.rand(3, 32, 32, generator=rng), root / "private" / f"{i}_class{i}.png")
    return [str(root / "private"), "--data", str(root / "data")]


SMALL = ["--attack", "ig", "--preset", "paper", "--size", "32", "--data-size", "16"]
SMALL += ["--rounds", "2", "--clients", "2", "--batch-size", "4", "--evaluations", "4"]
SMALL += ["--limit", "2", "--device", "cpu", "--grid", "sparsify:rate=0.9"]


def run(folders: list[str], *arguments: object) -> Result:
    return CliRunner().invoke(app, ["frontier", *folders, *SMALL, *map(str, arguments)])


def done(folders: list[str], *arguments: object) -> str:
    result = run(folders, *arguments)
    assert result.exit_code == 0, result.output
    return result.stderr


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "frontier.jsonl").read_text().splitlines()]


def kinds(rows: list[dict[str, Any]]) -> tuple[int, int]:
    """The numbers of attacks and federations."""
    found = [row["kind"] for row in rows]
    return found.count("attack"), found.count("federation")


def points_of(out: Path) -> list[list[str]]:
    """The rows of the page's table."""
    page = (out / "frontier.html").read_text(encoding="utf-8")
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    return [re.findall("<td>(.*?)</td>", row) for row in body.split("<tr>")[1:]]


def test_a_frontier_is_attacks_and_federations_of_which_attackers_share_one(
    folders: list[str], tmp_path: Path
) -> None:
    text = done(folders, "--out", tmp_path)
    rows = rows_of(tmp_path)
    assert kinds(rows) == (2 * 3, 2)
    assert [point[:4] for point in points_of(tmp_path)] == [
        ["none", "", "", "2"],
        ["sparsify", "rate=0.9", "static", "2"],
        ["sparsify", "rate=0.9", "adaptive", "2"],
    ]
    page = (tmp_path / "frontier.html").read_text(encoding="utf-8")
    for words in ("n = 2 images", "one victim, convnet", "one federation of 2 rounds"):
        assert words in page
    assert re.search(r"attacker +n +PSNR", text), "the table on the terminal says n too"
    attacks = [row for row in rows if row["kind"] == "attack"]
    drawn = [{row["seed"] for row in attacks if row["image"][0] == image} for image in "01"]
    assert [len(seeds) for seeds in drawn] == [1, 1], "alike for all defences and attackers"
    assert drawn[0] != drawn[1], "but not for all images"
    assert {row["victim_seed"] for row in attacks} == {0}
    adaptive, static = (
        [row["psnr"] for row in attacks if (row["defense"], row["attacker"]) == ("sparsify", who)]
        for who in ("adaptive", "static")
    )
    assert not set(adaptive) & set(static)
    before = points_of(tmp_path)
    done(folders, "--out", tmp_path)
    assert rows_of(tmp_path) == rows, "nothing is computed twice"
    assert points_of(tmp_path) == before


OTHER_SETTINGS: dict[str, tuple[list[str], tuple[int, int]]] = {
    "evaluations": (["--evaluations", "6"], (2, 0)),
    "restarts": (["--restarts", "2"], (2, 0)),
    "size": (["--size", "48"], (2, 0)),
    "clients": (["--clients", "3"], (0, 2)),
    "batch size": (["--batch-size", "5"], (0, 2)),
    "rounds": (["--rounds", "3"], (0, 2)),
    "data size": (["--data-size", "8"], (0, 2)),
    "seed": (["--seed", "1"], (2, 2)),
    "victim": (["--victim", "lenet"], (2, 2)),
    "another attacker": (["--attacker", "adaptive"], (1, 0)),
    "an attacker's former name": (["--attacker", "told"], (0, 0)),
}
"""What is recomputed: the numbers of attacks and of federations."""


def test_other_settings_are_computed_anew_and_drawn_alone(
    folders: list[str], tmp_path: Path
) -> None:
    base = ["--limit", "1", "--attacker", "static", "--out", str(tmp_path)]
    done(folders, *base)
    first = points_of(tmp_path)
    for name, (changed, computed) in OTHER_SETTINGS.items():
        before = rows_of(tmp_path)
        done(folders, *base, *changed)
        rows = rows_of(tmp_path)
        assert rows[: len(before)] == before, name
        assert kinds(rows[len(before) :]) == computed, name
        cells = {tuple(point[:3]) for point in points_of(tmp_path)}
        assert len(cells) == len(points_of(tmp_path)), f"{name}: today's points alone"
    before = rows_of(tmp_path)
    done(folders, *base)
    assert rows_of(tmp_path) == before
    assert points_of(tmp_path) == first, "the first setting's points are still there"


def test_another_prior_is_computed_anew(folders: list[str], tmp_path: Path) -> None:
    of_prior = ["--attack", "gifd", "--size", "64", "--evaluations", "8", "--limit", "1"]
    of_prior += ["--attacker", "adaptive", "--out", str(tmp_path)]
    done(folders, *of_prior, "--prior", "faces64")
    assert kinds(rows_of(tmp_path)) == (2, 2)
    done(folders, *of_prior, "--prior", "photos64")
    assert kinds(rows_of(tmp_path)) == (4, 2)
    done(folders, *of_prior, "--prior", "faces64", "--offline")
    assert kinds(rows_of(tmp_path)) == (4, 2), "where weights come from decides nothing"


def test_a_frontier_that_was_interrupted_goes_on_to_the_same_points(
    folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    done(folders, "--out", whole)
    observed, left = Trial.observed, [3]

    def some(self: Trial) -> tuple[Observation, Secret]:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return observed(self)

    monkeypatch.setattr(Trial, "observed", some)
    assert run(folders, "--out", out).exit_code == 130
    assert kinds(rows_of(out)) == (3, 2)
    file = out / "frontier.jsonl"
    file.write_bytes(file.read_bytes()[:-20])  # a kill while the third was written
    left[0] = 4
    done(folders, "--out", out)
    assert left[0] == 0
    assert points_of(out) == points_of(whole)


def test_points_of_an_older_version_are_refused(folders: list[str], tmp_path: Path) -> None:
    file = tmp_path / "frontier.jsonl"
    old = point("none", "", "static", 20.0, 0.9).model_dump_json() + "\n"
    file.write_text(old)
    result = run(folders, "--out", tmp_path)
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "older version): name another --out" in line
    assert file.read_text() == old


def test_a_row_that_was_changed_by_hand_is_refused(folders: list[str], tmp_path: Path) -> None:
    done(folders, "--out", tmp_path)
    file = tmp_path / "frontier.jsonl"
    file.write_text(re.sub(r'"accuracy": [0-9.]+', '"accuracy": "good"', file.read_text()))
    result = run(folders, "--out", tmp_path)
    assert result.exit_code == 2
    assert "expected results of a frontier, got: " in result.stderr


def test_a_defence_that_there_is_not_is_refused(folders: list[str], tmp_path: Path) -> None:
    bad = run(folders, "--grid", "noize:std=1", "--out", tmp_path)
    assert bad.exit_code == 2
    assert "known defence" in bad.stderr
