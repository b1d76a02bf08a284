"""The benchmark that compares attacks: equal cost, paired by image, resumable."""

import importlib.util
import json
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from typer.testing import CliRunner

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark", BENCHMARKS / "attacks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_runs_what_is_missing_at_equal_cost(benchmark: ModuleType, tmp_path: Path) -> None:
    import typer

    source, out = tmp_path / "images.zip", tmp_path / "rows.jsonl"
    with zipfile.ZipFile(source, "w") as archive:
        for index in range(3):
            array = np.full((64, 64, 3), 60 * index + 40, dtype=np.uint8)
            array[16:48, 16:48] += 30
            path = tmp_path / f"square_{index}.png"
            Image.fromarray(array).save(path)
            archive.write(path, f"folder/{path.name}")
    app = typer.Typer()
    app.command()(benchmark.main)
    arguments = [source, "--match", "square_[01]*", "--victim", "convnet", "--evaluations", "9"]
    arguments += ["--attacks", "ig:paper,gifd:strongest-smoothing", "--out", out]
    first = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert first.exit_code == 0, first.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 4
    assert {row["evaluations"] for row in rows} <= {8, 9}
    assert "gifd:strongest-smoothing - ig:paper | 2 |" in first.stdout
    again = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert len(out.read_text().splitlines()) == 4, "what is there is not run again"
    assert again.stdout == first.stdout


def test_the_table_has_paired_t_intervals(benchmark: ModuleType) -> None:
    left, right = [20.0, 18.0, 19.5], [17.0, 16.5, 18.0]
    common = {"ssim": 0.5, "stlpips": 0.2, "mse": 0.01, "seconds": 1.0, "seed": 0}
    rows = [
        {"image": str(i), "spec": spec, "psnr": values[i], "evaluations": 5, **common}
        for spec, values in (("a", right), ("b", left))
        for i in range(3)
    ]
    text = benchmark.table(rows, ["a", "b"])
    differences = np.array(left) - np.array(right)
    half = stats.t.ppf(0.975, 2) * differences.std(ddof=1) / np.sqrt(3)
    assert f"| b - a | 3 | {differences.mean():.2f} ± {half:.2f} |" in text


def test_defences_are_compared_with_every_attacker(tmp_path: Path) -> None:
    import typer

    spec = importlib.util.spec_from_file_location("defenses", BENCHMARKS / "defenses.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    source, out = tmp_path / "images", tmp_path / "rows.jsonl"
    source.mkdir()
    for index in range(2):
        array = np.full((64, 64, 3), 60 * index + 40, dtype=np.uint8)
        array[16:48, 16:48] += 30
        Image.fromarray(array).save(source / f"square_{index}.png")
    app = typer.Typer()
    app.command()(module.main)
    arguments = [str(source), "--victim", "convnet", "--evaluations", "8", "--out", str(out)]
    arguments += ["--defenses", "none;sparsify:rate=0.9", "--attackers", "naive,told"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert len(out.read_text().splitlines()) == 2 * 2 * 3, "none has one attacker"
    assert "| sparsify:rate=0.9 | told | gifd:paper | 2 |" in result.stdout
    assert "| none | naive | gifd:paper | 2 |" in result.stdout
    _, _, paired = result.stdout.partition("| gifd:paper - ig:paper | attacker |")
    rows = [json.loads(line) for line in out.read_text().splitlines()]

    def psnr(spec: str) -> list[float]:
        own = [r for r in rows if (r["spec"], r["attacker"]) == (spec, "told")]
        return [row["psnr"] for row in sorted(own, key=lambda row: row["image"])]

    mean = sum(a - b for a, b in zip(psnr("gifd:paper"), psnr("ig:paper"), strict=True)) / 2
    (line,) = [line for line in paired.splitlines() if "| told |" in line]
    assert float(line.split("|")[3].split("±")[0]) == pytest.approx(mean, abs=0.05)
    again = CliRunner().invoke(app, arguments)
    assert again.stdout == result.stdout
    assert len(out.read_text().splitlines()) == 12
