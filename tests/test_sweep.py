"""Keys of all settings that determine a result, the file of results, seeds per client."""

import importlib
import json
import math
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import small_sweep
from gifd.campaign import sweep
from gifd.campaign.digest import Digester, source
from gifd.campaign.sweep import Keys, Results, finished, number, seeds_of
from gifd.errors import InputError
from gifd.search import Progress

TESTS = Path(__file__).parent
PACKAGE = Path(sweep.__file__).parents[1]


# -- keys ------------------------------------------------------------------------------


def test_every_setting_changes_the_key() -> None:
    keys = small_sweep.keys()
    assert len(keys) > 60
    often = Counter(keys.values())
    assert [name for name, key in keys.items() if often[key] > 1] == []


@pytest.mark.parametrize("name", ["god", "told", ""])
def test_a_trial_refuses_an_attacker_that_there_is_not(name: str) -> None:
    with pytest.raises(InputError, match="static, adaptive, estimated"):
        small_sweep.trial(attacker=name)


@pytest.mark.parametrize("name", small_sweep.SAME)
def test_what_decides_nothing_does_not(name: str) -> None:
    assert Keys().trial(small_sweep.SAME[name]()) == Keys().trial(small_sweep.trial())


def test_where_a_metrics_weights_come_from_decides_nothing() -> None:
    fetched, cached = small_sweep.offline()
    assert fetched == cached
    assert fetched != Keys().trial(small_sweep.trial())


def test_another_process_finds_the_same_keys() -> None:
    """In a new process, without the tests' shape checks, with another hash order."""
    script = (
        "import json, torch, small_sweep\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "print(json.dumps(small_sweep.keys()))"
    )
    paths = os.pathsep.join([str(PACKAGE.parent), str(TESTS)])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": paths, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == small_sweep.keys()


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    yield
    torch.set_num_threads(before)


def test_the_number_of_threads_is_in_the_key(two_threads: None) -> None:
    now = Keys().trial(small_sweep.trial()), Keys().federation(small_sweep.federation())
    torch.set_num_threads(torch.get_num_threads() - 1)
    before = Keys().trial(small_sweep.trial()), Keys().federation(small_sweep.federation())
    assert not set(now) & set(before)


@pytest.mark.parametrize("package", ["gifd", "torch", "numpy", "scipy", "scikit-image", "cma"])
def test_versions_are_in_the_key(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Keys().trial(small_sweep.trial())
    real = sweep._version
    monkeypatch.setattr(sweep, "_version", lambda name: "0" if name == package else real(name))
    assert Keys().trial(small_sweep.trial()) != before


def test_the_source_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Keys().trial(small_sweep.trial()), Keys().federation(small_sweep.federation())
    monkeypatch.setattr(sweep, "source", lambda: "another")
    after = Keys().trial(small_sweep.trial()), Keys().federation(small_sweep.federation())
    assert not set(before) & set(after)


@pytest.mark.parametrize(
    ("file", "decides"),
    [
        ("search/loop.py", True),
        ("campaign/trial.py", True),
        ("model.py", True),
        ("new.py", True),
        ("cli/frontier.py", False),
        ("report/html.py", False),
        ("terminal.py", False),
        ("search/notes.txt", False),
    ],
)
def test_what_decides_is_source_and_what_shows_is_not(
    file: str, decides: bool, tmp_path: Path
) -> None:
    packages = []
    for name, text in (("one", "x = 1\n"), ("two", "x = 2\n")):
        (tmp_path / name / "kept").mkdir(parents=True)
        (tmp_path / name / "kept/same.py").write_text("")
        (tmp_path / name / file).parent.mkdir(exist_ok=True)
        (tmp_path / name / file).write_text(text)
        packages.append(tmp_path / name)
    assert (source(packages[0]) != source(packages[1])) == decides


def test_the_code_of_an_own_victim_counts_and_of_what_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    helper, victim = tmp_path / "swept_helper.py", tmp_path / "swept_victim.py"
    helper.write_text("def activation(x):\n    return x.relu()\n")
    victim.write_text(
        "from torch import nn\nfrom swept_helper import activation\n\n\n"
        "class Net(nn.Module):\n    def forward(self, x):\n        return activation(x)\n"
    )
    net = importlib.import_module("swept_victim").Net()
    before = Digester()(net)
    assert Digester()(net) == before
    helper.write_text("def activation(x):\n    return x.sigmoid()\n")
    assert Digester()(net) != before
    helper.write_text("def activation(x):\n    return x.relu()\n")
    assert Digester()(net) == before
    victim.write_text(victim.read_text().replace("activation(x)\n", "activation(x) + 1\n"))
    assert Digester()(net) != before


def test_weights_are_hashed_once_for_all_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    from gifd.campaign import digest

    hashed: list[int] = []
    real = digest._tensor
    monkeypatch.setattr(digest, "_tensor", lambda t: hashed.append(t.numel()) or real(t))  # type: ignore[func-returns-value]
    keys, client, attack = Keys(), small_sweep.client(), small_sweep.attack()
    keys.trial(small_sweep.trial(client=client, attack=attack))
    first = len(hashed)
    keys.trial(small_sweep.trial(client=client, attack=attack, seed=5))
    assert first > 50
    assert len(hashed) == first + 2, "the new trial's images and labels alone"


def test_values_are_told_apart_and_cycles_end() -> None:
    values = [
        *(1, 1.0, True, "1", b"1", None, -0.0, 0.0, math.nan, 1j),
        *([1], (1,), {1}, {1: 2}, {"1": 2}, [[1], 2], [[1, 2]], [1, [2]]),
        *(torch.tensor(1), torch.tensor([1]), torch.tensor(1.0), torch.tensor(1).int()),
        *(torch.float32, torch.device("cpu"), Path("a"), torch.relu, math.sin, Path, dict),
        *(torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)),
    ]
    assert len({Digester()(value) for value in values}) == len(values)
    ring: list[object] = [1]
    ring.append(ring)
    other: list[object] = [1]
    other.append([1, other])
    assert Digester()(ring) != Digester()(other)
    many = {f"{n}" for n in range(50)}
    assert Digester()(many) == Digester()({f"{n}" for n in range(49, -1, -1)})
    assert Digester()({"a": 1, "b": 2}) != Digester()({"b": 2, "a": 1}), "order may decide"


def test_what_cannot_be_told_by_value_is_refused() -> None:
    with pytest.raises(InputError, match="hashed by their content, got a _thread"):
        Digester()({"a": [threading.Lock()]})


# -- results ---------------------------------------------------------------------------


def test_rows_come_back_by_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.jsonl"
    rows: dict[str, dict[str, object]] = {"a": {"psnr": 1 / 3, "name": "é\n"}, "b": {"psnr": None}}
    results = Results(path)
    for key, row in rows.items():
        assert key not in results
        results.add(key, row)
        assert key in results
    again = Results(path)
    assert [dict(again[key]) for key in rows] == [{"key": k, **row} for k, row in rows.items()]
    assert len(path.read_text().splitlines()) == 2


@given(cut=st.integers(0, 10_000), keep=st.integers(0, 3))
def test_a_torn_line_is_computed_again_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, cut: int, keep: int
) -> None:
    path = tmp_path_factory.mktemp("torn") / "rows.jsonl"
    results = Results(path)
    for n in range(4):
        results.add(f"key{n}", {"value": n, "text": '{}é\\"\n', "list": [[1.5, None]]})
    lines = path.read_bytes().splitlines(keepends=True)
    torn = lines[keep][: cut % len(lines[keep])]
    path.write_bytes(b"".join(lines[:keep]) + torn)
    resumed = Results(path)
    whole = keep + (torn == lines[keep].rstrip(b"\n"))
    assert [f"key{n}" in resumed for n in range(4)] == [n < whole for n in range(4)]
    for n in range(whole, 4):
        resumed.add(f"key{n}", {"value": n})
    for found in (resumed, Results(path)):
        assert [number(found[f"key{n}"], "value") for n in range(4)] == [0, 1, 2, 3]


def test_two_processes_may_append_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    one, other = Results(path), Results(path)
    one.add("a", {"value": 1})
    other.add("b", {"value": 2})
    one.add("c", {"value": 3})
    assert [number(Results(path)[key], "value") for key in "abc"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b'{"image": "a.png", "spec": "ig:paper", "psnr": 1}\n', "name another --out"),
        (b'{"key": 3}\n', "name another --out"),
        (b"[1]\n", "name another --out"),
        (b"image,psnr\n", "results in JSON Lines, got line 1"),
        (b'{"key": "a"}\n{"image": \n', "results in JSON Lines, got line 2"),
        (b"[" * 100_000 + b"\n", "results in JSON Lines, got line 1"),
        (b"\xff\xfe\n", "expected results in"),
        (b'{"key": 1' + b"0" * 5000 + b"}\n", "results in JSON Lines|name another --out"),
    ],
)
def test_a_file_of_something_else_is_refused_in_one_line(
    content: bytes, wanted: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=wanted) as caught:
        Results(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))
    assert path.read_bytes() == content


def test_a_place_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected results in"):
        Results(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected to write to"):
        Results(tmp_path / "file" / "rows.jsonl").add("a", {})


def test_what_is_no_number_is_not_averaged() -> None:
    assert number({"psnr": 3}, "psnr") == 3.0
    for value in (None, "3", True, [3]):
        with pytest.raises(InputError, match="a number for 'psnr'"):
            number({"psnr": value}, "psnr")
    with pytest.raises(InputError, match="a number for 'psnr'"):
        number({}, "psnr")


def test_a_run_that_was_cut_short_is_no_result() -> None:
    def stop(now: Progress) -> None:
        if now.step == 1:
            raise KeyboardInterrupt

    cut = small_sweep.trial(attack=small_sweep.attack(label_mapping=None))
    assert cut.run(stop).record.interrupted
    with pytest.raises(KeyboardInterrupt):
        finished(cut, stop)
    assert finished(cut).evaluations == 6


# -- seeds -----------------------------------------------------------------------------


def test_seeds_differ_between_clients_and_sweeps() -> None:
    drawn = [
        value
        for seed in range(3)
        for index in range(200)
        for value in vars(seeds_of(index, seed=seed, victim_seed=seed)).values()
    ]
    assert len(set(drawn)) == len(drawn)
    assert seeds_of(3, seed=1, victim_seed=2) == seeds_of(3, seed=1, victim_seed=2)
    assert seeds_of(3, seed=1, victim_seed=2).victim == seeds_of(3, seed=0, victim_seed=2).victim
    assert seeds_of(3, seed=1, victim_seed=2).trial == seeds_of(3, seed=1, victim_seed=0).trial


def test_seeds_stay_what_they_are() -> None:
    """Rows record their seeds, so the sweep must derive the same ones in later versions."""
    assert [vars(seeds_of(index, seed=0)) for index in (0, 1)] == [
        {"victim": 2968811710, "trial": 3831201730},
        {"victim": 3964924996, "trial": 901243215},
    ]


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(InputError, match="a seed of at least 0"):
        seeds_of(0, seed=-1)
