"""Properties of the metrics, and their values against independent implementations."""

import math
import sys
import types
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from gifd.errors import InputError, WeightsError
from gifd.metrics import LPIPS, MSE, PSNR, SSIM, STLPIPS, Metric, match, score
from gifd.metrics import lpips as lpips_module
from gifd.metrics import stlpips as stlpips_module

pytestmark = pytest.mark.numerical

PIXEL_METRICS: list[Metric] = [MSE(), PSNR(), SSIM()]
few = settings(max_examples=15, deadline=None)


def noise(seed: int, batch: int = 3, channels: int = 3, side: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, side, side, generator=generator)


def waves(side: int, phase: float) -> Tensor:
    """Three colour images by a formula, the same everywhere."""
    i = torch.arange(side, dtype=torch.float64)
    rows, columns = i[:, None], i[None, :]
    b, c = (
        torch.arange(3.0).double()[:, None, None, None],
        torch.arange(3.0).double()[:, None, None],
    )
    tilted = torch.sin(0.21 * (c + 1) * rows + 0.13 * (b + 1) * columns + phase)
    return (0.5 + 0.5 * tilted * torch.cos(0.05 * (b + c + 1) * (rows - columns))).float()


@pytest.mark.parametrize(("metric", "best"), [(MSE(), 0.0), (PSNR(), math.inf), (SSIM(), 1.0)])
def test_equal_images_have_the_best_value(metric: Metric, best: float) -> None:
    images = noise(0)
    assert metric(images, images).tolist() == pytest.approx([best] * 3)


@few
@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from([1, 3]))
def test_pixel_metrics_are_symmetric_and_worse_than_identity(
    seed: int, batch: int, channels: int
) -> None:
    images, truth = noise(seed, batch, channels), noise(seed + 1, batch, channels)
    for metric in PIXEL_METRICS:
        value, best = metric(images, truth), metric(truth, truth)
        assert torch.allclose(value, metric(truth, images), rtol=1e-12)
        assert ((value < best) == metric.higher_is_better).all()
        assert value.shape == (batch,)
        assert value.dtype == torch.float64


@few
@given(st.integers(0, 10**6))
def test_psnr_is_the_logarithm_of_the_mse(seed: int) -> None:
    images, truth = noise(seed), noise(seed + 1)
    assert torch.allclose(PSNR()(images, truth), -10 * MSE()(images, truth).log10(), rtol=1e-12)


@few
@given(st.integers(0, 10**6), st.floats(0.01, 1))
def test_a_constant_error_has_its_square_as_mse(seed: int, error: float) -> None:
    truth = noise(seed).double() * (1 - error)
    assert MSE()(truth + error, truth).tolist() == pytest.approx([error**2] * 3)


@few
@given(st.integers(0, 10**6))
def test_a_batch_equals_its_images_one_by_one(seed: int) -> None:
    images, truth = noise(seed), noise(seed + 1)
    for metric in PIXEL_METRICS:
        single = [metric(images[i : i + 1], truth[i : i + 1]).item() for i in range(3)]
        assert metric(images, truth).tolist() == pytest.approx(single, rel=1e-12)


def slow_ssim(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Equation 13 of Wang et al. 2004, window by window, for one channel."""
    offsets = np.arange(-5, 6)
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a = x[top : top + 11, left : left + 11]
            b = y[top : top + 11, left : left + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a = (window * (a - mean_a) ** 2).sum()
            var_b = (window * (b - mean_b) ** 2).sum()
            both = (window * (a - mean_a) * (b - mean_b)).sum()
            light = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
            shape = (2 * both + 0.03**2) / (var_a + var_b + 0.03**2)
            values.append(light * shape)
    return float(np.mean(values))


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_that_of_the_paper(channels: int) -> None:
    images, truth = waves(16, 0.0)[:, :channels], waves(16, 0.7)[:, :channels]
    slow = [
        np.mean([slow_ssim(a, b) for a, b in zip(x, y, strict=True)])
        for x, y in zip(images.double().numpy(), truth.double().numpy(), strict=True)
    ]
    assert SSIM()(images, truth).tolist() == pytest.approx(slow, rel=1e-9)


@few
@given(st.integers(0, 10**6), st.permutations(range(5)))
def test_matching_undoes_any_order(seed: int, order: list[int]) -> None:
    truth = noise(seed, batch=5)
    images = (truth + 0.1 * noise(seed + 1, batch=5)).clamp(0, 1)
    assert torch.equal(images[order][match(images[order], truth)], images)
    assert score(images[order], truth, PIXEL_METRICS) == score(images, truth, PIXEL_METRICS)


@few
@given(st.integers(0, 10**6), st.permutations(range(4)))
def test_matching_is_a_permutation_and_no_other_costs_less(seed: int, order: list[int]) -> None:
    images, truth = noise(seed, batch=4), noise(seed + 1, batch=4)
    found = match(images, truth)
    assert sorted(found.tolist()) == [0, 1, 2, 3]
    best, other = MSE()(images[found], truth).sum(), MSE()(images[order], truth).sum()
    assert best <= other + 1e-12


def test_score_follows_the_order_of_the_truth() -> None:
    truth = torch.stack([torch.full((1, 12, 12), value) for value in (0.2, 0.5, 0.8)])
    images = truth.roll(1, 0) * 0.5 + 0.1
    values = score(images, truth, [MSE()])
    assert values == {"mse": pytest.approx([0.0, 0.15**2, 0.3**2], abs=1e-8)}


def test_score_refuses_two_metrics_of_one_name() -> None:
    with pytest.raises(InputError, match="different names"):
        score(noise(0), noise(0), [MSE(), MSE()])


@pytest.mark.parametrize(
    ("images", "truth", "reason"),
    [
        (noise(0), noise(0, batch=2), "one shape"),
        (noise(0)[0], noise(0)[0], r"\(B, C, H, W\)"),
        (noise(0)[:0], noise(0)[:0], "no side empty"),
        (noise(0) * 255, noise(0), "images with values in"),
        (noise(0), noise(0) - 0.5, "truth with values in"),
        (noise(0), noise(0) * math.nan, "truth with values in"),
        ((noise(0) * 255).byte(), noise(0), "of floats"),
    ],
)
def test_what_cannot_be_compared_is_refused(images: Tensor, truth: Tensor, reason: str) -> None:
    for compare in (MSE(), SSIM(), match):
        with pytest.raises(InputError, match=reason) as error:
            compare(images, truth)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("metric", "side"), [(SSIM(), 10), (STLPIPS(offline=True), 20)])
def test_images_too_small_for_a_metric_are_refused(metric: Metric, side: int) -> None:
    with pytest.raises(InputError, match="at least"):
        metric(noise(0, side=side), noise(1, side=side))


def test_gradients_do_not_reach_into_a_metric() -> None:
    assert not MSE()(noise(0).requires_grad_(), noise(1)).requires_grad


@pytest.fixture(scope="module")
def stlpips() -> STLPIPS:
    metric = STLPIPS()
    try:
        metric(noise(0, side=21), noise(0, side=21))
    except WeightsError as error:
        if "no network" not in str(error):
            raise
        pytest.skip(f"the ST-LPIPS weights cannot be fetched here: {error}")
    return metric


# Printed by the authors' own package (stlpips-pytorch 0.0.2) for the same images.
GOLDEN = {
    64: [0.0390630364, 0.0220801458, 0.0120118763],
    32: [0.0403120965, 0.022112973, 0.0128781172],
}
GOLDEN_GREY = {  # first channel against second, each repeated to three
    64: [0.21850159764289856, 0.20461474359035492, 0.29652541875839233],
    32: [0.2095392346382141, 0.19043025374412537, 0.2025855928659439],
}


@pytest.mark.parametrize("side", [64, 32])
def test_stlpips_is_that_of_its_authors(stlpips: STLPIPS, side: int) -> None:
    x, y = waves(side, 0.0), waves(side, 0.7)
    assert stlpips(x, y).tolist() == pytest.approx(GOLDEN[side], rel=1e-4)
    grey = stlpips(x[:, :1], x[:, 1:2])
    assert grey.tolist() == pytest.approx(GOLDEN_GREY[side], rel=1e-4)


def test_stlpips_is_zero_at_identity_symmetric_and_independent_of_the_batch(
    stlpips: STLPIPS, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = waves(32, 0.0), waves(32, 0.7)
    value = stlpips(x, y)
    assert stlpips(x, x).tolist() == [0, 0, 0]
    assert torch.allclose(value, stlpips(y, x), rtol=1e-6)
    monkeypatch.setattr(stlpips_module, "_CHUNK", 2)
    assert torch.allclose(value, stlpips(x, y), rtol=1e-5)


def test_stlpips_refuses_two_channels() -> None:
    with pytest.raises(InputError, match="1 or 3 channels"):
        STLPIPS()(waves(32, 0.0)[:, :2], waves(32, 0.7)[:, :2])


def test_stlpips_without_its_weights(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIFD_CACHE", str(tmp_path_factory.mktemp("empty")))
    stlpips_module._weights.cache_clear()
    with pytest.raises(WeightsError, match="offline"):
        STLPIPS(offline=True)(waves(32, 0.0), waves(32, 0.7))


@pytest.fixture
def fresh_lpips() -> Iterator[None]:
    lpips_module._network.cache_clear()
    yield
    lpips_module._network.cache_clear()


@pytest.mark.usefixtures("fresh_lpips")
def test_lpips_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(InputError, match=r'pip install "gifd\[lpips\]"') as error:
        LPIPS()(waves(32, 0.0), waves(32, 0.7))
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("fresh_lpips")
def test_lpips_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(**options: object) -> None:
        raise OSError("urlopen error")

    fake = types.ModuleType("lpips")
    fake.LPIPS = unreachable  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", fake)
    with pytest.raises(InputError, match="urlopen error"):
        LPIPS()(waves(32, 0.0), waves(32, 0.7))


@pytest.mark.usefixtures("fresh_lpips")
def test_lpips_passes_colour_in_zero_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Network(torch.nn.Module):
        def __init__(self, *, net: str, verbose: bool) -> None:
            super().__init__()
            assert (net, verbose) == ("alex", False)

        def forward(self, x: Tensor, y: Tensor, *, normalize: bool) -> Tensor:
            assert normalize
            assert not self.training
            assert x.shape[1] == 3
            assert x.dtype == torch.float32
            return (x - y).abs().mean((1, 2, 3), keepdim=True)

    fake = types.ModuleType("lpips")
    fake.LPIPS = Network  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", fake)
    truth = torch.zeros(2, 1, 32, 32)
    assert LPIPS()(truth + 0.25, truth).tolist() == [0.25, 0.25]
