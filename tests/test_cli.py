"""The command line, run as a user runs it: results on stdout, everything else on stderr."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from gifd import catalog
from gifd.attacker.observe import observe
from gifd.attacks import ig
from gifd.campaign.record import Record
from gifd.cli import app
from gifd.federation.client import Client
from gifd.images import read_image
from gifd.metrics import stlpips
from golden.tiny import as_hugging_face, named, small_stylegan2

QUICK = ["--victim", "convnet", "--steps", "6", "--restarts", "1"]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A smooth colour gradient with a disc."""
    y, x = np.mgrid[0:80, 0:72] / 80
    disc = ((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.06) * 0.5
    array = np.stack([x, y * 0.8, 0.3 + disc], axis=2)
    path = tmp_path / "disc.png"
    Image.fromarray((array.clip(0, 1) * 255).astype(np.uint8)).save(path)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def one_error(result: Result) -> str:
    """The one line on stderr of a user error, with exit code 2."""
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in result.output
    return lines[0]


def test_json_is_one_object_on_stdout_with_all_a_program_needs(
    picture: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run("attack", picture, "--attack", "gifd", *QUICK, "--json", "--out", out)
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    wanted = "psnr ssim mse stlpips distance seconds evaluations seed ledger phases versions"
    assert set(wanted.split()) <= set(record)
    assert record["evaluations"] == sum(phase["evaluations"] for phase in record["phases"])
    assert record["label_source"] == "inferred"
    (image,) = record["images"]
    assert image["label_used"] == image["label"] == 0
    assert image["psnr"] == record["psnr"]
    assert record["ledger"]["labels"] is None
    assert record["distance"] == min(phase["distance"] for phase in record["phases"])
    assert len(record["phases"][0]["curve"]) > 0
    assert (out / "report.html").stat().st_size > 10_000
    assert (out / "strip.png").exists()


def test_the_same_seed_gives_the_same_record(picture: Path, tmp_path: Path) -> None:
    records = []
    for name in ("one", "two"):
        result = run(
            "attack", picture, "--attack", "ig", *QUICK, "--json", "--out", tmp_path / name
        )
        records.append(json.loads(result.stdout))
    for key in ("psnr", "stlpips", "distance", "evaluations"):
        assert records[0][key] == records[1][key]


def test_several_images_and_attacks_are_an_object_a_line(picture: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.png"
    with Image.open(picture) as image:
        image.rotate(180).save(second)
    both = ["--attack", "ig", "--attack", "gifd-latent"]
    result = run("attack", picture, second, *both, *QUICK, "--json", "--out", tmp_path / "out")
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(r["image"], r["attack"]) for r in records] == [
        ("disc.png", "ig"),
        ("disc.png", "gifd-latent"),
        ("second.png", "ig"),
        ("second.png", "gifd-latent"),
    ]


def test_options_of_a_prior_that_no_attack_has_are_said_to_be_unused(
    picture: Path, tmp_path: Path
) -> None:
    chosen = ["--prior", "faces64", "--label-mapping", "off", "--out", tmp_path / "out"]
    alone = run("attack", picture, "--attack", "ig", *chosen, *QUICK)
    assert alone.exit_code == 0
    assert "no attack here uses a prior: --prior, --label-mapping not used" in alone.stderr
    beside = run("attack", picture, "--attack", "ig", "--attack", "gifd", *chosen, *QUICK)
    assert beside.exit_code == 0
    assert "not used" not in beside.stderr


def test_images_are_dealt_to_clients_in_batches(picture: Path, tmp_path: Path) -> None:
    paths = [picture]
    for turns in (1, 2, 3):
        paths.append(tmp_path / f"turned-class{turns}.png")
        with Image.open(picture) as image:
            image.rotate(90 * turns).save(paths[-1])
    out = tmp_path / "out"
    shared = ["--batch-size", "2", "--attack", "ig", *QUICK, "--json", "--out", out]
    result = run("attack", *paths, "--label", 3, "--label", 3, "--label", 1, "--label", 2, *shared)
    assert result.exit_code == 0, result.output
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    assert first["image"] == "disc.png and 1 more"
    assert [image["name"] for image in second["images"]] == [p.name for p in paths[2:]]
    assert [image["label"] for image in second["images"]] == [1, 2]
    for record in (first, second):
        assert record["ledger"]["batch_size"] == 2
        assert record["label_source"] == "estimated"
        means = [image["psnr"] for image in record["images"]]
        assert record["psnr"] == pytest.approx(sum(means) / 2)
    assert sorted(image["label_used"] for image in first["images"]) == [3, 3]
    folder = out / "trials" / "0001-disc-ig-strongest"
    with Image.open(folder / "private.png") as sheet:
        assert sheet.size == (128, 64)
    with Image.open(folder / "private-02.png") as alone:
        assert alone.size == (64, 64)
    assert "Image by image" in (out / "report.html").read_text(encoding="utf-8")
    more = [
        "--grant-labels",
        "--grant-batch-norm",
        "running",
        "--protocol",
        "fedavg:lr=0.1,steps=2",
    ]
    named = run("attack", *paths[1:3], "--labels", "class([0-9])", *shared, *more)
    told = json.loads(named.stdout)
    assert told["label_source"] == "granted"
    assert [image["label"] for image in told["images"]] == [1, 2]
    assert told["ledger"]["labels"] == [1, 2]
    assert told["ledger"]["batch_norm"] == "running"
    assert "FedAvg(steps=2, lr=0.1" in told["ledger"]["protocol"]


def test_a_defence_and_what_the_attacker_knows_are_recorded(picture: Path, tmp_path: Path) -> None:
    out = ["--attack", "ig", *QUICK, "--json", "--out", tmp_path / "out"]
    chain = ["--defense", "sparsify:rate=0.9", "--defense", "quantize:scheme=bf16"]
    records = {
        attacker: json.loads(run("attack", picture, *chain, "--attacker", attacker, *out).stdout)
        for attacker in ("static", "adaptive", "estimated")
    }
    for attacker, record in records.items():
        assert record["defenses"][0] == "Sparsify(rate=0.9, per_layer=False)"
        assert record["ledger"]["attacker"] == attacker
    assert records["adaptive"]["ledger"]["defenses"] == records["adaptive"]["defenses"]
    assert records["static"]["ledger"]["defenses"] is None
    assert records["static"]["ledger"]["believed"] == []
    assert any("bf16" in belief for belief in records["estimated"]["ledger"]["believed"])
    assert records["static"]["distance"] != records["adaptive"]["distance"]
    assert "Sparsify" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("former", "name"), [("naive", "static"), ("told", "adaptive")])
def test_an_attackers_former_name_is_noted(
    former: str, name: str, picture: Path, tmp_path: Path
) -> None:
    out = ["--attack", "ig", *QUICK, "--json", "--out", tmp_path / "out"]
    chain = ["--defense", "clip:norm=1", "--attacker"]
    old, new = (run("attack", picture, *chain, attacker, *out) for attacker in (former, name))
    note = f"note: the attacker '{former}' is now called '{name}'"
    assert (note in old.stderr, note in new.stderr) == (True, False)
    records = [json.loads(each.stdout) for each in (old, new)]
    assert records[0]["ledger"] == records[1]["ledger"]
    assert records[0]["distance"] == records[1]["distance"]


def test_a_bad_image_costs_its_own_trial_and_no_other(picture: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"this is no picture")
    out = tmp_path / "out"
    result = run("attack", bad, picture, "--attack", "ig", *QUICK, "--json", "--out", out)
    assert "bad.png" in one_error(result)
    assert [json.loads(line)["image"] for line in result.stdout.splitlines()] == ["disc.png"]
    assert (out / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--label", "10"], "labels from 0 to 9"),
        (["--defense", "noize:std=1"], "a known defence"),
        (["--defense", "noise"], "give std"),
        (["--defense", "noise:sdt=1"], "options of 'noise' (std=...)"),
        (["--defense", "noise:std=1,std=2"], "each once"),
        (["--defense", "sparsify:0.9"], "rate=..."),
        (["--defense", "noise:std=inf"], "finite"),
        (["--attack", "gifd:features=few"], "features to be a whole number or none, got 'few'"),
        (["--attack", "ig:size=3"], "of 'ig' ("),
        (["--metric", "beauty"], "a known metric (psnr, ssim, mse, stlpips, lpips)"),
        (["--attack", "gifd", "--prior", "faces64:latent=q"], "latent to be z or w or w+"),
        (["--victim", "convnet:width=wide"], "width to be a whole number"),
        (["--defense", "noise:std=loud"], "std to be a number"),
        (["--defense", "sparsify:rate=1.5"], "a sparsification rate in [0, 1)"),
        (["--defense", "sparsify:rate=0.5,per_layer=so"], "true or false"),
        (["--defense", "aggregate:clients=2.5"], "a whole number"),
        (["--defense", "quantize:scheme=int4"], "a scheme"),
        (["--defense", "ats:policies=99"], "policies like"),
        (["--defense", "clip:norm=1", "--defense", "dpsgd:noise=1"], "give it first"),
        (["--defense", "clip:norm=1", "--defense", "clip:norm=2"], "each kind of defence once"),
        (["--defense", "clip:norm=1", "--attacker", "god"], "an attacker"),
        (["--defense", "aggregate:clients=2"], "2 clients share alike"),
        (["--label", "1", "--label", "2"], "one --label for all images"),
        (["--labels", "class([0-9])"], "a class number"),
        (["--labels", "class[0-9"], "a regular expression"),
        (["--batch-size", "2"], "a number of images that 2 divides"),
        (["--protocol", "fedavg:steps=2"], "give lr"),
        (["--protocol", "fedavg:lr=1,steps=2,epochs=1"], "steps or epochs"),
        (["--protocol", "fedavg:lr=1,beta1=0.5"], "options of sgd"),
        (["--protocol", "fedavg:lr=1,optimizer=lion"], "optimizer to be sgd or adam or adamw"),
        (["--protocol", "fedsgd:lr=1"], "no options for 'fedsgd'"),
        (["--grant-batch-norm", "some"], "'running' or 'batch'"),
        (["--attack", "gifff"], "a known attack"),
        (["--prior", "nobody"], "a known prior"),
        (["--victim", "nobody"], "a known victim"),
        (["--victim", "gifd_has_no:factory"], "an importable victim"),
        (["--victim", "builtins:len"], "builtins:len"),
        (["--preset", "best"], "paper, gifd-paper, strongest"),
        (["--without", "magic"], "an extension"),
        (["--preset", "paper", "--without", "curvature"], "none is"),
        (["--classes", "1"], "at least 2 classes"),
        (["--device", "abacus"], "a usable device"),
        (["--size", "128", "--attack", "gifd"], "3 x 128 x 128"),
        (["--attack", "gifd", "--steps", "2"], "steps"),
    ],
)
def test_a_mistake_gives_one_line_and_exit_code_2(
    picture: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    result = run("attack", picture, *QUICK, *arguments, "--out", tmp_path / "out")
    assert says in one_error(result)


def test_the_label_is_read_behind_a_head_that_is_not_linear(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "headless_victim.py").write_text(
        "import torch\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(3, 16, 5, 2), torch.nn.ReLU(),\n"
        "        torch.nn.Conv2d(16, 10, 3),\n"
        "        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())\n"
    )
    monkeypatch.chdir(tmp_path)
    arguments = ["--victim", "headless_victim:make", "--attack", "ig", "--steps", "3"]
    arguments += ["--label", "4", "--json", "--out", "out"]
    result = run("attack", picture, *arguments)
    assert result.exit_code == 0, result.output
    record = Record.model_validate_json(result.stdout)
    assert (record.images[0].label_used, record.label_source) == (4, "estimated")


def test_your_own_victim_is_attacked(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_victim.py").write_text(
        "import torch\n"
        "from gifd import Model\n"
        "def make():\n"
        "    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8, 8), torch.nn.ReLU(),\n"
        "        torch.nn.Flatten(), torch.nn.Linear(256, 7))\n"
        "    return Model(module=net, mean=(0.5,) * 3, std=(0.5,) * 3)\n"
    )
    monkeypatch.chdir(tmp_path)
    arguments = ["--victim", "own_victim:make", "--attack", "ig", "--steps", "3", "--label", "6"]
    result = run("attack", picture, *arguments, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["images"][0]["label_used"] == 6


def test_the_victims_weights_are_those_of_its_seed(picture: Path, tmp_path: Path) -> None:
    small = ["--size", 32, "--attack", "ig", *QUICK, "--json", "--out", tmp_path / "out"]
    for seed in (0, 5):
        told = json.loads(run("attack", picture, *small, "--victim-seed", seed).stdout)
        assert told["victim"]["seed"] == seed
        model = catalog.victim("convnet", classes=10, size=32, seed=seed)
        image = read_image(picture, size=32)[None]
        observation = observe(Client(model=model).step(image, torch.tensor([0]))[0])
        found = ig(restarts=1).with_steps(6)(observation)
        curve = [row[0] for row in told["phases"][0]["curve"]]
        assert curve == pytest.approx([row[0] for row in found.phases[0].curve], rel=1e-3)


# -- nothing fetched -----------------------------------------------------------------------


@pytest.fixture
def pip_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and instead of pip a script that records its arguments and fails."""
    calls, python = tmp_path / "calls", tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho \"$@\" >> '{calls}'\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setenv("GIFD_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(sys, "executable", str(python))
    stlpips._weights.cache_clear()  # this process may have read them already
    yield calls
    stlpips._weights.cache_clear()


DCGAN, METRIC = "digiface-dcgan", "stlpips-alex"
ATTACK = ["attack", "{picture}", *QUICK]
FRONTIER = ["frontier", "{data}", "--data", "{data}", "--data-size", "32", "--limit", "1"]
TRAIN = ["prior", "train", "{data}", "--out", "{out}", "--size", "32", "--images", "2"]
TRAIN += ["--batch", "2", "--channel-base", "64", "--channel-max", "8", "--latent", "6"]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([*ATTACK, "--prior", DCGAN], DCGAN),
        ([*ATTACK, "--attack", "ig"], METRIC),
        ([*FRONTIER, "--prior", DCGAN], DCGAN),
        ([*FRONTIER, "--attack", "ig"], METRIC),
        (["prior", "score", DCGAN, "--images", "{data}"], DCGAN),
        (["prior", "score", "{prior}", "--images", "{data}", "--steps", "8"], METRIC),
        (["prior", "remapper", DCGAN, "--out", "{out}"], DCGAN),
        ([*TRAIN, "--score", "2"], METRIC),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)
def test_offline_fetches_nothing(
    picture: Path, pip_calls: Path, tmp_path: Path, arguments: list[str], wanted: str
) -> None:
    data, prior = tmp_path / "data", tmp_path / "style.pt"
    data.mkdir()
    for number in range(2):
        shutil.copy(picture, data / f"{number}_class{number}.png")
    torch.save(small_stylegan2(resolution=32), prior)
    for asked, reason in ((["--offline"], "offline was asked for"), ([], "pip could not download")):
        out = tmp_path / f"out{len(asked)}.safetensors"
        places = {"picture": picture, "data": data, "prior": prior, "out": out}
        error = one_error(run(*(part.format(**places) for part in arguments), *asked))
        assert wanted in error
        assert reason in error
        assert pip_calls.exists() == (not asked)


def test_list_shows_everything_with_its_paper() -> None:
    result = CliRunner().invoke(app, ["list"], env={"COLUMNS": "250"})
    assert result.exit_code == 0
    for word in ("gifd-latent", "ICCV 2023", "ig", "NeurIPS 2020", "digiface-dcgan", "resnet18"):
        assert word in result.stdout


def test_prior_info_and_samples(tmp_path: Path) -> None:
    info = run("prior", "info", "digiface-dcgan")
    assert info.exit_code == 0
    assert "512 x 4 x 4" in info.stdout
    out = tmp_path / "grid.png"
    sample = run("prior", "sample", "digiface-dcgan", "--count", "5", "--out", out)
    assert sample.exit_code == 0
    with Image.open(out) as grid:
        assert grid.size == (3 * 64, 2 * 64)
    assert "a known prior" in one_error(run("prior", "info", "nobody"))


# -- checkpoints ---------------------------------------------------------------------------


def test_attack_and_prior_commands_take_checkpoint_files(picture: Path, tmp_path: Path) -> None:
    folder = tmp_path / "biggan"
    folder.mkdir()
    as_hugging_face(named("biggan truncation 1.0"), folder)
    done = run("prior", "convert", folder, tmp_path / "biggan.safetensors")
    assert done.exit_code == 0, done.output
    assert "biggan-deep" in done.stdout
    torch.save(small_stylegan2(resolution=32), tmp_path / "style.pt")
    quick = [*QUICK[:2], "--size", "32", "--steps", "12", "--restarts", "1", "--json"]
    for file, options in (
        ("biggan.safetensors", ["--prior-option", "truncation=0.5"]),
        ("style.pt", ["--prior-option", "latent=z", "--prior-option", "optimise=w"]),
    ):
        out = tmp_path / f"out-{file}"
        command = ["attack", picture, "--prior", tmp_path / file, *options, *quick, "--out", out]
        done = run(*command)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["attack"] == "gifd"
    info = run("prior", "info", tmp_path / "style.pt", "--option", "resolution=8")
    assert info.exit_code == 0, info.output
    assert "noise2" in info.output
    assert "noise3" not in info.output
    sheet = tmp_path / "sheet.png"
    sample = run("prior", "sample", tmp_path / "biggan.safetensors", "--count", 4, "--out", sheet)
    assert sample.exit_code == 0, sample.output
    with Image.open(sheet) as image:
        assert image.size == (64, 64)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["attack", "x.png", "--prior", "stylegan2-ffhq"], "download it from"),
        (["attack", "x.png", "--prior", "nowhere.pkl"], "a checkpoint file or your own"),
        (["attack", "x.png", "--prior", "{file}", "--prior-option", "area=x"], "area=a number"),
        (["attack", "x.png", "--prior", "{file}", "--prior-option", "size=8"], "an option of"),
        (["attack", "x.png", "--prior", "{file}", "--prior-option", "latent=q"], "z or w or w+"),
        (
            ["attack", "x.png", "--prior", "digiface-dcgan", "--prior-option", "area=8"],
            "expected no options",
        ),
        (["prior", "info", "{file}", "--option", "optimise=x"], "w, noise with commas"),
        (["prior", "info", "{file}", "--option", "resolution=5"], "resolution of"),
        (["prior", "fetch", "{file}"], "to fetch"),
        (["prior", "convert", "{file}", "out.pt"], "ends in .safetensors"),
        (["prior", "convert", "gone.pt", "out.safetensors"], "found none at"),
    ],
)
def test_mistakes_with_checkpoints_get_one_line(
    arguments: list[str], reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "style.pt"
    torch.save(small_stylegan2(), file)
    assert reason in one_error(run(*(argument.format(file=file) for argument in arguments)))


def test_a_label_that_the_update_does_not_bear_out_is_noted(tmp_path: Path) -> None:
    model = catalog.victim("convnet", classes=10, size=64, seed=0)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    observation = observe(Client(model=model).step(image, torch.tensor([3]))[0])
    for name, update in (("sent", observation.update), ("flipped", -observation.update)):
        update.save(tmp_path / name)
        victim = ["--victim", "convnet", "--batch-size", "1"]
        result = run("labels", tmp_path / name, *victim, "--json")
        assert result.exit_code == 0, result.output
        told = "note: the label is not reliable" in result.stderr
        assert told == (name == "flipped")
        assert (json.loads(result.stdout)["labels"] == [3]) == (name == "sent")


def test_labels_are_read_off_an_update_file(tmp_path: Path) -> None:
    model = catalog.victim("convnet", classes=10, size=64, seed=0)
    images = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    observation = observe(Client(model=model).step(images, torch.tensor([7, 2, 2, 0, 7]))[0])
    path = tmp_path / "update.safetensors"
    observation.update.save(path)
    victim = ["--victim", "convnet", "--batch-size", "5"]
    told = json.loads(run("labels", path, *victim, "--json").stdout)
    assert told["labels"] == [0, 2, 2, 7, 7]
    assert sum(told["counts"]) == 5
    assert min(told["confidence"]) > 0.5
    table = run("labels", path, *victim, "--estimator", "class-embeddings")
    assert table.exit_code == 0
    assert "5 labels" in table.stderr + table.stdout
    other = json.loads(run("labels", path, *victim, "--json", "--victim-seed", 1).stdout)
    assert other["shares"] != told["shares"], "read with another victim's weights"
    assert "known estimator" in one_error(run("labels", path, *victim, "--estimator", "luck"))
    assert "--own" in one_error(run("labels", path, *victim, "--estimator", "own-images"))
    assert "misses" in one_error(run("labels", path, "--batch-size", "5"))
    assert "safetensors" in one_error(run("labels", tmp_path / "no.safetensors", *victim))
