"""The benchmarks: equal cost, paired by image, resumable, and never another setting's table."""

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from scipy import stats
from typer.testing import CliRunner, Result

from gifd.attacker.observation import Observation
from gifd.campaign.trial import Trial
from gifd.cli import app
from gifd.federation.secret import Secret
from gifd.interval import written

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def load(name: str) -> ModuleType:
    unique = f"benchmark_{name}"
    spec = importlib.util.spec_from_file_location(unique, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load("attacks")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures; two match 'square_[01]*'."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(3):
        array = np.full((64, 64, 3), 60 * index + 40, dtype=np.uint8)
        array[16:48, 16:48] += 30
        Image.fromarray(array).save(folder / f"square_{index}.png")
    return folder


def run(module: ModuleType, *arguments: object) -> Result:
    command = typer.Typer()
    command.command()(module.main)
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def done(module: ModuleType, *arguments: object) -> str:
    result = run(module, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_seconds(text: str) -> list[list[str]]:
    """The cells of the tables, except seconds, which vary."""
    return [[c for i, c in enumerate(line.split("|")) if i != 7] for line in text.splitlines()]


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Ctrl-C in the trial after this many; `stopped(-1)` never."""
    whole, left = Trial.observed, [-1]

    def some(self: Trial) -> tuple[Observation, Secret]:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return whole(self)

    monkeypatch.setattr(Trial, "observed", some)

    def after(trials: int) -> None:
        left[0] = trials

    return after


def test_every_attack_has_the_same_cost_and_the_same_seeds(
    benchmark: ModuleType, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rows.jsonl"
    arguments = [source, "--match", "square_[01]*", "--victim", "convnet", "--evaluations", "9"]
    arguments += ["--attacks", "ig:paper,gifd:strongest-smoothing", "--out", out]
    first = done(benchmark, *arguments)
    rows = rows_of(out)
    assert len(rows) == 4
    assert {row["evaluations"] for row in rows} <= {8, 9}
    assert "| attack | n | psnr |" in first
    assert "gifd:strongest-smoothing - ig:paper | 2 |" in first
    assert "Each n has its own victim, start and noise" in first
    for kind in ("seed", "victim_seed"):
        drawn = {image: {r[kind] for r in rows if r["image"] == image} for image in IMAGES}
        assert all(len(seeds) == 1 for seeds in drawn.values()), "the attacks are paired"
        assert drawn[IMAGES[0]] != drawn[IMAGES[1]]
    assert done(benchmark, *arguments) == first
    assert rows_of(out) == rows, "what is there is not run again"


IMAGES = ("square_0.png", "square_1.png")
SMALL = ["--match", "square_[01]*", "--victim", "convnet", "--evaluations", "4"]
IG = [*SMALL, "--size", "32", "--attacks", "ig:paper"]

OTHER_SETTINGS: dict[str, list[str]] = {
    "evaluations": ["--evaluations", "6"],
    "victim": ["--victim", "lenet"],
    "victim's seed": ["--victim-seed", "1"],
    "seed": ["--seed", "1"],
    "restarts": ["--restarts", "2"],
    "defence": ["--defense", "noise:std=0.1"],
    "its strength": ["--defense", "noise:std=0.2"],
    "its attacker": ["--defense", "noise:std=0.2", "--attacker", "static"],
    "labels": ["--labels", "square_([0-9])", "--classes", "11"],
    "granted labels": ["--grant-labels"],
    "size": ["--size", "48"],
    "batches": ["--batch-size", "2"],
    "preset": ["--attacks", "ig:strongest"],
}


def test_other_settings_are_computed_anew_and_printed_alone(
    benchmark: ModuleType, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rows.jsonl"
    base = [source, *IG, "--limit", "1", "--out", out]
    first = done(benchmark, *base)
    for name, changed in OTHER_SETTINGS.items():
        before = rows_of(out)
        text = done(benchmark, *base, *changed)
        new = rows_of(out)[len(before) :]
        assert len(new) == 1, name
        spec = new[0]["spec"]
        line = f"| {spec} | {len(new)} | {written([row['psnr'] for row in new])} |"
        assert line in text, f"{name}: the table is of what was asked for"
        assert rows_of(out)[: len(before)] == before, name
    keys = [row["key"] for row in rows_of(out)]
    assert len(set(keys)) == len(keys)
    assert done(benchmark, *base) == first
    assert len(rows_of(out)) == len(keys), "the first setting's results are still there"


def test_another_prior_is_computed_anew_and_not_for_an_attack_without_one(
    benchmark: ModuleType, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rows.jsonl"
    both = [*SMALL, "--evaluations", "8", "--attacks", "ig:paper,gifd:paper", "--out", out]
    first = done(benchmark, source, *both)
    second = done(benchmark, source, *both, "--prior", "photos64")
    specs = [row["spec"] for row in rows_of(out)]
    assert (specs.count("ig:paper"), specs.count("gifd:paper")) == (2, 4)
    assert second != first
    assert done(benchmark, source, *both) == first


def test_other_pictures_under_the_same_names_are_computed_anew(
    benchmark: ModuleType, source: Path, tmp_path: Path
) -> None:
    out, folder = tmp_path / "rows.jsonl", tmp_path / "images"
    folder.mkdir()
    for name in IMAGES:
        (folder / name).write_bytes((source / name).read_bytes())
    done(benchmark, folder, *IG, "--out", out)
    with Image.open(folder / IMAGES[1]) as picture:
        changed = picture.copy()
    changed.putpixel((3, 5), (0, 0, 0))
    changed.save(folder / IMAGES[1])
    text = done(benchmark, folder, *IG, "--out", out)
    rows = rows_of(out)
    assert [row["image"] for row in rows] == [*IMAGES, IMAGES[1]]
    assert written([rows[0]["psnr"], rows[2]["psnr"]]) in text


def test_a_victim_of_fixed_weights_is_said_to_be_one(
    benchmark: ModuleType, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "rows.jsonl"
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_fixed.py").write_text(
        "import torch\nfrom gifd.victims import ConvNet\n\n\ndef make():\n"
        "    torch.manual_seed(3)\n    return ConvNet(10, width=4).eval()\n"
    )
    text = done(benchmark, source, *IG, "--victim", "own_fixed:make", "--out", out)
    assert "all share one victim" in text
    first, second = rows_of(out)
    assert first["seed"] != second["seed"]


def test_a_row_is_repeated_from_its_seeds(
    benchmark: ModuleType, source: Path, tmp_path: Path
) -> None:
    defense = ["--defense", "noise:std=0.1"]
    out = tmp_path / "rows.jsonl"
    done(benchmark, source, *IG, *defense, "--out", out)
    row = rows_of(out)[1]
    same = ["--attack", "ig", "--preset", "paper", "--evaluations", "4", "--restarts", "1"]
    same += ["--victim", "convnet", "--victim-seed", str(row["victim_seed"]), "--device", "cpu"]
    same += ["--seed", str(row["seed"]), "--label", "1", "--size", "32", *defense]
    where = ["--json", "--out", str(tmp_path / "runs")]
    repeated = CliRunner().invoke(app, ["attack", str(source / IMAGES[1]), *same, *where])
    assert repeated.exit_code == 0, repeated.output
    record = json.loads(repeated.stdout)
    assert [record[name] for name in ("psnr", "distance")] == [row["psnr"], row["distance"]]


def test_attacks_that_were_interrupted_go_on_to_the_same_table(
    benchmark: ModuleType, source: Path, tmp_path: Path, stopped: Callable[[int], None]
) -> None:
    arguments = [source, *SMALL, "--attacks", "ig:paper,idlg:paper"]
    arguments += ["--defense", "noise:std=0.1"]
    whole = done(benchmark, *arguments, "--out", tmp_path / "whole.jsonl")
    out = tmp_path / "rows.jsonl"
    stopped(3)
    assert run(benchmark, *arguments, "--out", out).exit_code == 130
    assert len(rows_of(out)) == 3
    out.write_bytes(out.read_bytes()[:-20])  # a kill while the third was written
    stopped(2)
    resumed = done(benchmark, *arguments, "--out", out)
    assert without_seconds(resumed) == without_seconds(whole)
    shards = tmp_path / "shards.jsonl"
    stopped(-1)
    partly = done(benchmark, *arguments, "--shard", "1/2", "--out", shards)
    assert "| idlg:paper | 1 |" in partly
    both = done(benchmark, *arguments, "--shard", "0/2", "--out", shards)
    assert without_seconds(both) == without_seconds(whole)


@pytest.mark.parametrize("name", ["attacks", "defenses"])
def test_a_file_of_an_older_version_is_refused(name: str, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    old = '{"spec": "ig:paper", "image": "square_0.png", "seed": 0, "psnr": 99.0}\n'
    out.write_text(old)
    result = run(load(name), source, *SMALL, "--evaluations", "9", "--out", out)
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "older version): name another --out" in line
    assert "Traceback" not in result.output
    assert out.read_text() == old


@pytest.mark.parametrize("shard", ["1", "2/2", "a/b", "-1/2", "0/"])
def test_a_shard_that_is_none_is_refused(
    benchmark: ModuleType, source: Path, tmp_path: Path, shard: str
) -> None:
    result = run(benchmark, source, *IG, "--shard", shard, "--out", tmp_path / "rows.jsonl")
    assert result.exit_code == 2
    assert "expected --shard as k/n" in result.stderr
    assert "Traceback" not in result.output


def test_the_table_has_paired_t_intervals(benchmark: ModuleType) -> None:
    left, right = [20.0, 18.0, 19.5], [17.0, 16.5, 18.0]
    common = {"ssim": 0.5, "stlpips": 0.2, "mse": 0.01, "seconds": 1.0, "evaluations": 5}
    found = {
        spec: {i: {"psnr": values[i], **common} for i in range(3)}
        for spec, values in (("a", right), ("b", left))
    }
    text = benchmark.table(found)
    differences = np.array(left) - np.array(right)
    half = stats.t.ppf(0.975, 2) * differences.std(ddof=1) / np.sqrt(3)
    assert f"| b - a | 3 | {differences.mean():.2f} ± {half:.2f} |" in text


DEFENSES = ["--defenses", "none;sparsify:rate=0.9", "--attackers", "static,adaptive"]


def test_defences_are_compared_with_every_attacker(source: Path, tmp_path: Path) -> None:
    module, out = load("defenses"), tmp_path / "rows.jsonl"
    arguments = [source, *SMALL, "--evaluations", "8", *DEFENSES, "--out", out]
    first = done(module, *arguments)
    rows = rows_of(out)
    assert len(rows) == 2 * 2 * 3, "none has one attacker"
    assert "| defence | attacker | attack | n |" in first
    assert "| sparsify:rate=0.9 | adaptive | gifd:paper | 2 |" in first
    assert "| none | static | gifd:paper | 2 |" in first
    assert "Each n has its own victim, start and noise" in first
    _, _, paired = first.partition("| gifd:paper - ig:paper | attacker | n |")

    def psnr(spec: str) -> list[float]:
        own = [r for r in rows if (r["spec"], r["attacker"]) == (spec, "adaptive")]
        return [row["psnr"] for row in sorted(own, key=lambda row: row["image"])]

    mean = sum(a - b for a, b in zip(psnr("gifd:paper"), psnr("ig:paper"), strict=True)) / 2
    (line,) = [line for line in paired.splitlines() if "| adaptive |" in line]
    assert float(line.split("|")[4].split("±")[0]) == pytest.approx(mean, abs=0.05)
    for kind in ("seed", "victim_seed"):
        drawn = [{r[kind] for r in rows if r["image"] == image} for image in IMAGES]
        assert len(drawn[0]) == len(drawn[1]) == 1, "alike for every attack and defence"
        assert drawn[0] != drawn[1]
    assert done(module, *arguments) == first
    assert rows_of(out) == rows


def test_defences_of_other_settings_are_computed_anew(source: Path, tmp_path: Path) -> None:
    module, out = load("defenses"), tmp_path / "rows.jsonl"
    base = [source, *IG, "--limit", "1", "--out", out]
    base += ["--attackers", "static", "--defenses", "none;noise:std=0.1"]
    first = done(module, *base)
    changes: dict[str, list[str]] = {
        "evaluations": ["--evaluations", "6"],
        "victim": ["--victim", "lenet"],
        "victim's seed": ["--victim-seed", "1"],
        "seed": ["--seed", "1"],
    }
    for name, changed in changes.items():
        before = len(rows_of(out))
        text = done(module, *base, *changed)
        new = rows_of(out)[before:]
        assert len(new) == 2, name
        for defense in ("none", "noise:std=0.1"):
            values = [row["psnr"] for row in new if row["defense"] == defense]
            assert f"| {defense} | static | ig:paper | 1 | {written(values)} |" in text, name
    before = len(rows_of(out))
    done(module, *base, "--defenses", "none;noise:std=0.2")
    assert len(rows_of(out)) == before + 1, "no defence is what it was"
    assert done(module, *base) == first
    assert len(rows_of(out)) == before + 1


def test_the_noise_of_a_defence_is_drawn_for_each_image(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is the same for all attacks and attackers on this image."""
    noise: dict[tuple[str, int], list[torch.Tensor]] = {}
    whole = Trial.observed

    def kept(self: Trial) -> tuple[Observation, Secret]:
        sent, _ = self.client.step(self.images, self.labels)
        bare = type(self.client)(model=self.client.model).step(self.images, self.labels)[0]
        own = torch.cat([(sent.update[n] - bare.update[n]).flatten() for n in sent.update])
        noise.setdefault((self.name, len(self.client.defenses)), []).append(own)
        return whole(self)

    monkeypatch.setattr(Trial, "observed", kept)
    arguments = [source, *IG, "--attackers", "static,adaptive", "--defenses", "none;noise:std=0.1"]
    done(load("defenses"), *arguments, "--out", tmp_path / "rows.jsonl")
    one, other = noise[IMAGES[0], 1], noise[IMAGES[1], 1]
    assert len(one) == len(other) == 2
    torch.testing.assert_close(one[0], one[1], rtol=0, atol=0)
    torch.testing.assert_close(other[0], other[1], rtol=0, atol=0)
    assert abs(float(torch.corrcoef(torch.stack([one[0], other[0]]))[0, 1])) < 0.05


def test_defences_that_were_interrupted_go_on_to_the_same_tables(
    source: Path, tmp_path: Path, stopped: Callable[[int], None]
) -> None:
    module, out = load("defenses"), tmp_path / "rows.jsonl"
    arguments = [source, *IG, "--attackers", "static,adaptive", "--defenses", "none;noise:std=0.1"]
    whole = done(module, *arguments, "--out", tmp_path / "whole.jsonl")
    stopped(2)
    assert run(module, *arguments, "--out", out).exit_code == 130
    out.write_bytes(out.read_bytes()[:-20])
    stopped(5)
    assert done(module, *arguments, "--out", out) == whole
    assert re.search(r"\| noise:std=0.1 \| adaptive \| ig:paper \| 2 \|", whole)


def test_directions_are_of_victims_and_starts_of_each_image(source: Path) -> None:
    arguments = [source, "--match", "square_[01]*", "--victim", "convnet", "--widths", "0"]
    module = load("curvature")
    first = done(module, *arguments)
    assert "Each n has its own victim, start and noise" in first
    assert re.search(r"\| noise \| 0 \| 2 \| -?0\.\d+ ± 0\.\d+ \|", first)
    assert done(module, *arguments) == first
    assert done(module, *arguments, "--victim-seed", "1") != first
    assert done(module, *arguments, "--seed", "1") != first


def test_a_line_for_one_victim_says_so_and_n(source: Path) -> None:
    text = done(load("regression"), source, "--victim", "convnet", "--samples", "10")
    assert "One victim and one draw of samples" in text
    assert re.search(r"\| 10 \| 3 \| \d+\.\d+ ± ", text)


def test_label_counts_of_one_victim_say_so_and_n(tmp_path: Path) -> None:
    for index in range(18):
        array = np.full((16, 16, 3), 10 * index, dtype=np.uint8)
        Image.fromarray(array).save(tmp_path / f"{index:02d}_class{index % 3}.png")
    arguments = [tmp_path, "--labels", "class([0-9])", "--size", "16", "--steps", "0"]
    text = done(load("labels"), *arguments, "--batches", "1", "--draws", "2")
    assert "one victim, n = 2 batches of each size" in text


# -- the device ------------------------------------------------------------------------


def test_the_device_is_measured_at_a_small_size(tmp_path: Path) -> None:
    """All that a GPU is asked for, on this processor, each beside what it is compared with."""
    out = tmp_path / "device.json"
    small = ["--victim", "lenet", "--images", "1,2", "--steps", 1, "--device", "cpu"]
    said = done(load("device"), *small, "--out", out)
    report = json.loads(out.read_text())
    by_name = {each["name"]: each for each in report["measured"]}
    assert len(by_name) == len(report["measured"]) == 3 * 3 + 2 + 2
    for name in by_name:
        assert name.split(",")[0] in said
    for each in by_name.values():
        assert each["value"] > 0
        if each["ratio"] is None:
            continue
        base = by_name[each["against"]]
        quotient = each["value"] / base["value"]
        faster = quotient if each["unit"] == "a second" else 1 / quotient
        assert each["ratio"] == pytest.approx(faster, rel=1e-6)
    shares = report["profile"]["shares"]
    assert sum(shares.values()) == pytest.approx(1, abs=1e-2)
    assert shares["convolution"] > 0
    assert report["profile"]["host_waits_a_step"] > 0, "on a CPU the host looks at every step"
    assert report["device"] == "cpu"


def test_no_measurement_begins_when_the_time_is_up(tmp_path: Path) -> None:
    out = tmp_path / "device.json"
    done(load("device"), "--victim", "lenet", "--minutes", 0, "--device", "cpu", "--out", out)
    assert json.loads(out.read_text())["measured"] == []


def test_the_fit_is_judged_for_each_kind_of_client(source: Path) -> None:
    chosen = ["--truths", "as believed,the wrong sign", "--clients", 2, "--simulated", 10]
    text = done(load("fit"), source, *chosen, "--size", 16, "--batch-size", 2)
    rows = dict(line[2:].split(" | ")[:2] for line in text.splitlines() if line.startswith("| "))
    assert set(rows) == {"client", "as believed", "the wrong sign"}
    assert rows["the wrong sign"] == "1.00"


def test_rounds_are_compared_with_one(source: Path) -> None:
    few = ["--limit", 2, "--counts", "1,2", "--steps", 3, "--size", 16]
    text = done(load("rounds"), source, *few)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines] == ["| rounds", "| 1", "| 2"]
    assert "±" in lines[2].split(" | ")[3]


def test_rounds_of_a_federation_are_attacked_beside_the_untrained_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(20):
        array = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(array).save(tmp_path / f"{index:02d}_class{index % 2}.png")
    few = ["--owns", "0.5,0.9", "--rounds", "0,1,2", "--clients", 2, "--limit", 2, "--size", 16]
    chosen = [*few, "--training", "fedavg:lr=0.3,epochs=3", "--evaluations", 20]
    text = done(load("global_model"), tmp_path, *chosen)
    rows = [line[2:].split(" | ") for line in text.splitlines() if re.match(r"\| \d", line)]
    assert [row[:2] for row in rows] == [[own, n] for own in ("0.5", "0.9") for n in "012"]
    assert rows[0][5] == rows[3][5] == ""
    assert all("±" in row[5] for row in rows if row[1] != "0")
    assert len({row[4] for row in rows[:3]}) == 3, "each at its own model"
    assert run(load("global_model"), tmp_path, *few, "--rounds", "2,1").exit_code == 2


def test_unknown_training_is_compared_with_known(source: Path) -> None:
    few = ["--limit", 2, "--gradients", 8, "--size", 16, "--protocol", "fedavg:lr=0.1,steps=3"]
    text = done(load("unknown_training"), source, *few)
    lines = [line for line in text.splitlines() if line.startswith("| fedavg")]
    beliefs = ["known", "fedavg:lr=0.01", "between:at=0.0", "between:at=0.25", "between"]
    assert [line.split(" | ")[1] for line in lines] == beliefs
    assert "±" in lines[-1]
