"""What a device does with the search: restart-steps a second, ratios, and where a step's time goes.

    python benchmarks/device.py --device cuda --out device.json

All measurements of one call, in minutes: each is made beside what it is compared with, and the
ratio is what counts. On a CPU the same is done at a tenth of the size.

- steps: GIFD's latent and a feature domain of it, and IG's pixels: of one image with four restarts
  one by one and vectorised, and of more and more images at once;
- population: a generation of CMA-ES at once against one candidate after the other;
- projection: L1 balls by sorting against Newton's steps, which read back to the host;
- settings (CUDA): TF32 convolutions and cuDNN's own choice of algorithms, each against without;
- profile: the share of a step's time by kind of operation, and how often the host waits for it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch.profiler import ProfilerActivity, profile

from gifd import catalog
from gifd.attacker.observation import Observation
from gifd.attacker.observe import observe
from gifd.attacks import Attack, ggl, gifd, ig
from gifd.cli.options import device_of
from gifd.federation.client import Client
from gifd.model import Model
from gifd.priors import Generator
from gifd.search import Carried, Phase
from gifd.search.projections import by_newton, by_sorting
from gifd.terminal import one_line_errors, table

KINDS = {
    "convolution": ("conv",),
    "matrix product": ("mm", "linear", "bmm", "addbmm"),
    "normalisation": ("batch_norm",),
    "reduction": ("sum", "dot", "norm", "mean", "var", "cumsum", "sort", "all", "any"),
    "copy": ("copy_", "cat", "clone", "stack", "to_copy", "fill_", "zero_"),
}
WAITS = ("aten::_local_scalar_dense", "cudaStreamSynchronize")
"""Operations by which the host reads a value."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One measurement.

    Args:
        name: what.
        value: in `unit`.
        unit: 'a second' (more is better) or 'ms' (less is).
        against: the name of what it is compared with.
        ratio: how many times faster than that; None without one.
        peak_bytes: of the accelerator's memory; None on a CPU.
    """

    name: str
    value: float
    unit: str
    against: str | None = None
    ratio: float | None = None
    peak_bytes: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """What is measured on, and how long.

    Args:
        device: of all tensors.
        victim: by name.
        prior: whose latent and features are searched.
        images: so many at once, ascending.
        steps: timed of each search.
        until: no further measurement begins after this time (`time.perf_counter`).
    """

    device: torch.device
    victim: str
    prior: Generator
    images: Sequence[int]
    steps: int
    until: float

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return time.perf_counter() > self.until

    def model(self) -> Model:
        """The victim."""
        size = self.prior.image_shape[1]
        return catalog.victim(self.victim, classes=10, size=size, seed=0, device=self.device)

    def observations(self, model: Model, count: int) -> list[Observation]:
        """Of so many clients with a sample of the prior each."""
        samples = self.prior.sample(count, seed=5).clamp(0, 1)
        return [
            observe(Client(model=model).step(samples[i : i + 1], torch.tensor([i % 10]))[0])
            for i in range(count)
        ]

    def seconds(self, run: Callable[[], object]) -> float:
        """Of one run, after one that does not count."""
        run()
        self.wait()
        began = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        """Until the device has done all that it was asked."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak(self) -> int | None:
        """Bytes since the last call; the count begins anew."""
        if self.device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak


def single(attack: Attack, phase: Phase, steps: int) -> Attack:
    """The attack of this one phase, begun at random draws."""
    return replace(attack, phases=(replace(phase, begin=Carried(), steps=steps),))


def searches(bench: Bench) -> dict[str, Attack]:
    """What is searched, by name."""
    whole = gifd(bench.prior, preset="paper", restarts=4)
    latent, feature = whole.phases[0], whole.phases[2]
    pixels = ig(preset="paper", restarts=4)
    return {
        "latent": single(whole, latent, bench.steps),
        feature.name: single(whole, feature, bench.steps),
        "pixels": single(pixels, pixels.phases[0], bench.steps),
    }


def steps(bench: Bench) -> Iterator[Measured]:
    """Restart-steps a second: one by one, vectorised, and of several images at once."""
    model = bench.model()
    seen = bench.observations(model, max(bench.images))
    for name, attack in searches(bench).items():
        base: float | None = None
        ways = [(1, False), *((count, True) for count in bench.images)]
        for count, batched in ways:
            if bench.late:
                return

            def run(attack: Attack = attack, count: int = count, batched: bool = batched) -> None:
                attack.many(seen[:count], seeds=[0] * count, batched=batched, at_once=count)

            bench.peak()
            try:
                rate = count * attack.restarts * bench.steps / bench.seconds(run)
            except torch.OutOfMemoryError:
                yield Measured(name=f"{name}, {count} images: out of memory", value=0, unit="-")
                break
            way = "vectorised" if batched else "one by one"
            yield Measured(
                name=f"{name}, {count} x 4, {way}",
                value=rate,
                unit="a second",
                against=None if base is None else f"{name}, 1 x 4, one by one",
                ratio=None if base is None else rate / base,
                peak_bytes=bench.peak(),
            )
            base = rate if base is None else base


def population(bench: Bench) -> Iterator[Measured]:
    """Candidates of CMA-ES a second, a generation at once or one after the other."""
    whole = ggl(bench.prior, preset="gifd-paper", restarts=1)
    attack = single(whole, whole.phases[-1], 50 if bench.steps > 5 else 10)
    seen, rates = bench.observations(bench.model(), 1), []
    for batched in (False, True):
        if bench.late:
            return
        rates.append(
            attack.phases[0].steps
            / bench.seconds(
                lambda batched=batched: attack.many(seen, seeds=[0], batched=batched)  # type: ignore[misc]
            )
        )
        yield Measured(
            name=f"CMA-ES, {'a generation at once' if batched else 'one by one'}",
            value=rates[-1],
            unit="a second",
            against="CMA-ES, one by one" if batched else None,
            ratio=rates[-1] / rates[0] if batched else None,
            peak_bytes=bench.peak(),
        )


def projection(bench: Bench) -> Iterator[Measured]:
    """Milliseconds of a projection of 4 x 64 features, or of 4 on a CPU."""
    rows = 4 * max(bench.images)
    v = torch.randn(rows, 65_536, generator=torch.Generator().manual_seed(0)).to(bench.device)
    radius = 0.1 * v.abs().sum(1, dtype=torch.float64)
    times = []
    for name, project in (("Newton", by_newton), ("sorting", by_sorting)):
        if bench.late:
            return
        times.append(bench.seconds(lambda project=project: project(v, radius)))  # type: ignore[misc]
        yield Measured(
            name=f"L1 projection of {rows}, {name}",
            value=1000 * times[-1],
            unit="ms",
            against=None if name == "Newton" else f"L1 projection of {rows}, Newton",
            ratio=None if name == "Newton" else times[0] / times[1],
        )


@contextmanager
def cudnn(**flags: bool) -> Iterator[None]:
    """Settings of cuDNN, and back."""
    before = {name: getattr(torch.backends.cudnn, name) for name in flags}
    for name, value in flags.items():
        setattr(torch.backends.cudnn, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(torch.backends.cudnn, name, value)


def settings(bench: Bench) -> Iterator[Measured]:
    """What TF32 and cuDNN's own choice are worth, on CUDA."""
    if bench.device.type != "cuda":
        return
    model, count = bench.model(), max(bench.images) // 4 or 1
    seen, base = bench.observations(model, count), None
    name, attack = list(searches(bench).items())[1]
    for label, flags in (
        ("float32", {"allow_tf32": False, "benchmark": False}),
        ("float32, cudnn.benchmark", {"allow_tf32": False, "benchmark": True}),
        ("TF32", {"allow_tf32": True, "benchmark": False}),
    ):
        if bench.late:
            return
        with cudnn(**flags):
            spent = bench.seconds(
                lambda: attack.many(seen, seeds=[0] * count, batched=True, at_once=count)
            )
        rate = count * attack.restarts * bench.steps / spent
        base = base or rate
        yield Measured(
            name=f"{name}, {count} x 4, {label}",
            value=rate,
            unit="a second",
            against=f"{name}, {count} x 4, float32",
            ratio=rate / base,
            peak_bytes=bench.peak(),
        )


def shares(bench: Bench) -> dict[str, object]:
    """Where a step's time goes: shares by kind of operation; and the host's waits a step."""
    model, count = bench.model(), max(bench.images) // 4 or 1
    seen = bench.observations(model, count)
    attack = list(searches(bench).values())[1]
    vectorised = bench.device.type != "cpu"

    def run() -> None:
        attack.many(seen, seeds=[0] * count, batched=vectorised, at_once=count)

    run()
    kinds = [ProfilerActivity.CPU]
    kinds += [ProfilerActivity.CUDA] if bench.device.type == "cuda" else []
    with profile(activities=kinds) as seen_by:
        run()
        bench.wait()
    spent: dict[str, float] = dict.fromkeys([*KINDS, "elementwise and other"], 0.0)
    waits = 0
    for event in seen_by.key_averages():
        waits += event.count if event.key in WAITS else 0
        own = event.self_device_time_total if vectorised else event.self_cpu_time_total
        kind = next((k for k, parts in KINDS.items() if any(p in event.key for p in parts)), None)
        spent[kind or "elementwise and other"] += own
    total = sum(spent.values()) or 1.0
    return {
        "what": f"{attack.phases[0].name}, {count} x {attack.restarts}",
        "shares": {name: round(value / total, 4) for name, value in spent.items()},
        "host_waits_a_step": waits / bench.steps,
    }


@one_line_errors
def main(
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")] = "auto",
    victim: Annotated[str, typer.Option(help="Default: resnet18; on a CPU convnet.")] = "",
    prior: str = "faces64",
    images: Annotated[
        str, typer.Option(help="Images at once, comma-separated. Default: 1,4,16,64; CPU 1,4.")
    ] = "",
    timed: Annotated[
        int | None, typer.Option("--steps", help="Timed steps. Default: 30; CPU 3.", min=1)
    ] = None,
    minutes: Annotated[float, typer.Option(help="No measurement begins after this time.")] = 8.0,
    out: Annotated[Path, typer.Option(help="The JSON to write.")] = Path("runs/device.json"),
) -> None:
    """Measure, print a table and write JSON."""
    on = device_of(device)
    small = on.type == "cpu"
    bench = Bench(
        device=on,
        victim=victim or ("convnet" if small else "resnet18"),
        prior=catalog.prior(prior),
        images=[int(count) for count in (images or ("1,4" if small else "1,4,16,64")).split(",")],
        steps=timed or (3 if small else 30),
        until=time.perf_counter() + 60 * minutes,
    )
    found: list[Measured] = []
    for measure in (steps, population, projection, settings):
        found.extend(measure(bench))
    profiled = None if bench.late else shares(bench)
    table(
        f"{bench.victim} and {prior} on {_name(on)}",
        ("measured", "", "times faster", "than", "peak, MiB"),
        [
            (
                each.name,
                f"{each.value:,.4g} {each.unit}",
                "" if each.ratio is None else f"{each.ratio:.2f}",
                each.against or "",
                "" if each.peak_bytes is None else f"{each.peak_bytes / 2**20:,.0f}",
            )
            for each in found
        ],
    )
    if profiled is not None:
        table("A step's time", ("of", "share, waits"), [(k, str(v)) for k, v in profiled.items()])
    out.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "device": _name(on),
        "victim": bench.victim,
        "prior": prior,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "tf32": bool(torch.backends.cudnn.allow_tf32) if on.type == "cuda" else None,
        "measured": [asdict(each) for each in found],
        "profile": profiled,
    }
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    typer.echo(str(out))


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


if __name__ == "__main__":
    typer.run(main)
