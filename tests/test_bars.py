"""Progress: the bar in a terminal of 80 columns, and the lines elsewhere."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from gifd import bars, terminal
from gifd.search import Progress
from gifd.training import Stand
from gifd.training.trainer import Losses


def console(width: int, is_terminal: bool) -> Console:
    return Console(
        file=io.StringIO(),
        width=width,
        force_terminal=is_terminal,
        color_system=None,
        highlight=False,
    )


def written(to: Console) -> str:
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


def stand(step: int, phase: str = "feature 3", restarts: int = 4) -> Progress:
    return Progress(
        phase=phase,
        phase_index=3,
        phases=5,
        step=step,
        steps=1000,
        images=1,
        restarts=restarts,
        evaluations=restarts * (3000 + step),
        evaluations_planned=restarts * 5000,
        distance=0.01234,
        seconds=1.0,
    )


LONG = "a_photograph_with_a_long_name_20260101_120000.png and 7 more: gradinversion"


@pytest.mark.parametrize("width", [80, 100, 200])
@pytest.mark.parametrize("title", ["i.png: gifd", LONG, "[red]x[/nothing].png: ig"])
@pytest.mark.parametrize("phase", ["feature 3", "generator weights, coarse"])
def test_the_time_left_is_seen_in_every_width(
    monkeypatch: pytest.MonkeyPatch, width: int, title: str, phase: str
) -> None:
    to = console(width, is_terminal=True)
    monkeypatch.setattr(terminal, "say", to)
    with terminal.progress(title) as callback:
        callback(stand(500, phase))
    lines = [
        line for line in re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*\w", "", written(to))) if line
    ]
    last = lines[-1]
    assert re.search(r" 70 % \d+:\d\d:\d\d$", last.rstrip()), last
    assert len(last) <= width
    assert title[:6] in last
    assert phase in last
    if phase == "feature 3":
        assert "500/1000 · 4 restarts · distance 0.0123" in last
    if width == 200:
        assert title in last


def test_a_beginning_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    to = console(100, is_terminal=True)
    monkeypatch.setattr(terminal, "say", to)
    with terminal.progress("i.png: peel") as callback:
        callback(replace(stand(0), doing="input of layer3.weight is known"))
    assert "feature 3 · 4 restarts · input of layer3.weight is known" in written(to)
    assert "0/1000" not in written(to)


def test_nothing_is_drawn_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    to = console(80, is_terminal=True)
    monkeypatch.setattr(terminal, "say", to)
    with terminal.steps("remapper", 10, "it is trained once"):
        pass
    assert "remapper" not in written(to)


class Clock:
    """A clock that the test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def lines_of(seconds: list[float]) -> list[str]:
    """The lines for steps that are done at `seconds`."""
    to, clock = console(80, is_terminal=False), Clock()
    with bars.shown(to, "i.png: ig", clock=clock) as update:
        for number, second in enumerate(seconds, start=1):
            clock.now = 1000.0 + second
            update(f"pixels {number}", number, len(seconds), None)
    return written(to).splitlines()


def test_lines_come_every_tenth_where_there_is_no_terminal() -> None:
    lines = lines_of([6.0 * k for k in range(1, 101)])
    assert len(lines) == 10
    assert lines[0] == "i.png: ig · pixels 10 · 10% · 0:09:00 left"
    assert lines[-1] == "i.png: ig · pixels 100 · 100% · 0:00:00 left"


def test_what_is_quick_writes_no_lines_and_what_is_slow_one_a_minute() -> None:
    assert lines_of([0.04 * k for k in range(1, 101)]) == []
    slow = lines_of([30.0 * k for k in range(1, 1001)])
    assert len(slow) == 500
    assert slow[0] == "i.png: ig · pixels 2 · 0% · 8:19:00 left"
    steady = lines_of([0.5 * k for k in range(1, 101)])
    assert [line.split(" · ")[1] for line in steady] == [f"pixels {k}" for k in range(10, 101, 10)]


def test_a_training_tells_the_time_that_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    to = console(80, is_terminal=True)
    monkeypatch.setattr(terminal, "say", to)
    losses = Losses(generator=1.0, discriminator=0.5, real=0.7)
    with terminal.training("leaves") as callback:
        callback(Stand(seen=1_500_000, images=2_000_000, rate=812, left=75, p=0.31, losses=losses))
    assert "0:01:15" in written(to)
    assert "1,500,000 images" in written(to)
