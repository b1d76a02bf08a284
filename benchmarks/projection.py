"""The L1 projection by Newton's steps, as on a CPU, against sorting, as on an accelerator.

python benchmarks/projection.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from gifd.search.projections import by_newton, by_sorting


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
    print("| elements | radius / norm | sorting, ms | Newton, ms | times faster | difference |")
    print("|---|---|---|---|---|---|")
    for size in (10_000, 100_000, 1_000_000):
        for share in (0.01, 0.1, 0.5, 1.1):
            v = torch.randn(1, size, generator=rng)
            radius = share * v.abs().sum(1, dtype=torch.float64)
            slow = seconds(lambda v=v, r=radius: by_sorting(v, r))  # type: ignore[misc]
            fast = seconds(lambda v=v, r=radius: by_newton(v, r))  # type: ignore[misc]
            off = float((by_sorting(v, radius) - by_newton(v, radius)).abs().max())
            print(
                f"| {size:,} | {share} | {slow * 1e3:.2f} | {fast * 1e3:.2f} | "
                f"{slow / fast:.1f} | {off:.0e} |"
            )


if __name__ == "__main__":
    main()
