"""The L1 projection compared with the sorting algorithm: time and largest difference.

python benchmarks/projection.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from gifd.search import project_l1


def by_sorting(v: Tensor, radius: Tensor) -> Tensor:
    """Duchi et al., ICML 2008: sort, accumulate, find the last index above the threshold."""
    ordered = v.abs().sort(dim=1, descending=True).values.double()
    sums = ordered.cumsum(1) - radius[:, None]
    ranks = torch.arange(1, v.shape[1] + 1, dtype=torch.float64)
    last = (ordered * ranks > sums).sum(1, keepdim=True)
    threshold = sums.gather(1, last - 1) / last
    shrunk = (v.abs() - threshold.to(v.dtype)).clamp_min(0)
    inside = v.abs().sum(1, dtype=torch.float64) <= radius
    return torch.where(inside[:, None], v, torch.copysign(shrunk, v))


def seconds(run: Callable[[], object], repeats: int = 15) -> float:
    """The median of several runs, after one warm-up run."""
    run()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return sorted(times)[repeats // 2]


def main() -> None:
    """Print a table."""
    rng = torch.Generator().manual_seed(0)
    print("| elements | radius / norm | sorting, ms | ours, ms | times faster | difference |")
    print("|---|---|---|---|---|---|")
    for size in (10_000, 100_000, 1_000_000):
        for share in (0.01, 0.1, 0.5, 1.1):
            v = torch.randn(1, size, generator=rng)
            radius = share * v.abs().sum(1, dtype=torch.float64)
            slow = seconds(lambda v=v, r=radius: by_sorting(v, r))  # type: ignore[misc]
            fast = seconds(lambda v=v, r=radius: project_l1(v, r))  # type: ignore[misc]
            off = float((by_sorting(v, radius) - project_l1(v, radius)).abs().max())
            print(
                f"| {size:,} | {share} | {slow * 1e3:.2f} | {fast * 1e3:.2f} | "
                f"{slow / fast:.1f} | {off:.0e} |"
            )


if __name__ == "__main__":
    main()
