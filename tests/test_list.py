"""`gifd list` and `gifd --version`: every name with its description, and the version."""

from collections.abc import Callable, Mapping
from importlib.metadata import version

import pytest
from typer.testing import CliRunner, Result

from gifd import catalog, terminal
from gifd.campaign.record import Record
from gifd.cli import app
from gifd.leakage.counts import AuxiliaryLeastSquares, Impact
from gifd.metrics import PSNR, SSIM, STLPIPS

GIVEN = ("preset", "restarts", "classes", "size", "channels", "images")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "400"})


def test_the_version_is_said() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout == f"gifd {version('gifd')}\n"
    assert result.stderr == ""


def test_everything_that_has_a_name_is_described() -> None:
    result = run("list")
    assert result.exit_code == 0, result.output
    rows = {line.split("  ")[0].strip(): line for line in result.stdout.splitlines() if line}
    for name, entry in catalog.BY_HAND.items():
        assert entry.summary in rows[name]
    tables: list[Mapping[str, Callable[..., object]]] = [
        *(
            catalog.ATTACKS,
            catalog.PROTOCOLS,
            catalog.DEFENSES,
            catalog.PRIORS,
            catalog.VICTIMS,
            catalog.LABELS,
        ),
        {"own-images": AuxiliaryLeastSquares},
    ]
    for table in tables:
        for name, thing in table.items():
            assert catalog.summary(thing) in rows[name]
            assert catalog.reference(thing) in rows[name]
            for option in catalog.options(thing, besides=GIVEN):
                assert option in rows[name]
    for name, metric in catalog.METRICS.items():
        assert catalog.summary(metric) in rows[name]
        assert ("higher" if metric.higher_is_better else "lower") in rows[name]
    assert "by hand" in rows["stylegan2-ffhq"]
    assert "shipped" in rows["faces64"]
    assert "fetched" in rows["digiface-dcgan"]


def test_summaries_and_references_are_what_the_docstrings_say() -> None:
    assert catalog.summary(Impact) == (
        "Each label lowers the sum of its row by an impact m, estimated from the negative sums"
    )
    assert catalog.reference(Impact) == "Wainakh et al., PoPETs 2022"
    assert catalog.reference(SSIM) == "Wang et al., 2004"
    assert catalog.reference(STLPIPS) == "Ghildyal and Liu, ECCV 2022"
    assert catalog.reference(PSNR) == ""


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.04, "0.0"), (0.42, "0.4"), (9.96, "10.0"), (10.4, "10"), (75.6, "76")]
)
def test_seconds_below_ten_have_a_tenth(
    seconds: float, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = Record.model_construct(
        image="i.png",
        attack="ig",
        preset="paper",
        psnr=1.0,
        ssim=None,
        mse=None,
        stlpips=None,
        distance=0.5,
        evaluations=7,
        seconds=seconds,
        defenses=[],
        ledger={},
    )
    terminal.results([record])
    (row,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("i.png")]
    assert row.split()[-1] == shown
