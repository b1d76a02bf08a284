"""Updates and weights in the forms in which other tools write them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import opacus
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gifd.captures import (
    Capture,
    at_weights,
    from_arrays,
    from_gradients,
    from_module,
    from_state_dicts,
    read_capture,
    read_weights,
)
from gifd.errors import UpdateError, WeightsError
from gifd.model import Model
from gifd.updates import Update


class Net(nn.Module):
    """Batch norm, so that its state dict has buffers, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU())
        self.middle = nn.Conv2d(4, 4, 1).requires_grad_(False)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.middle(self.body(x)).mean((2, 3)))  # type: ignore[no-any-return]


def network(seed: int = 0) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net()


def trained(module: nn.Module, steps: int = 3) -> nn.Module:
    """A copy of it after a few steps in training mode, so that its buffers change as well."""
    local = copy.deepcopy(module).train()
    moving = [p for p in local.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(moving, lr=0.1)
    rng = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        images, labels = torch.rand(4, 3, 8, 8, generator=rng), torch.tensor([0, 1, 2, 3])
        torch.autograd.backward(F.cross_entropy(local(images), labels))
        optimizer.step()
    return local


BEFORE = network().eval()
AFTER = trained(BEFORE).eval()
MODEL = Model(module=BEFORE)
DELTA = Update(
    {
        name: (
            p.detach().double() - dict(BEFORE.named_parameters())[name].detach().double()
        ).float()
        for name, p in AFTER.named_parameters()
        if p.requires_grad
    }
)


def agrees(found: Capture, expected: Update = DELTA, atol: float = 1e-7) -> bool:
    return list(found.update) == list(expected) and all(
        torch.allclose(found.update[name], expected[name], rtol=0, atol=atol) for name in expected
    )


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def arrays(module: nn.Module) -> list[np.ndarray[Any, Any]]:
    """As Flower's examples send the weights."""
    return [tensor.detach().cpu().numpy() for tensor in module.state_dict().values()]


def compiled(module: nn.Module) -> nn.Module:
    found = torch.compile(module)
    assert isinstance(found, nn.Module)
    return found


# -- in memory -------------------------------------------------------------------------------


def test_two_state_dicts_give_the_delta_without_buffers() -> None:
    found = from_state_dicts(weights(BEFORE), weights(AFTER), MODEL)
    assert agrees(found)
    assert any("5 tensors that are not trained were left out" in note for note in found.notes)


@pytest.mark.parametrize(
    ("wrap", "told"),
    [
        (nn.DataParallel, "the prefix 'module.' was removed"),
        (compiled, "'_orig_mod.' in the names was removed"),
        (lambda net: nn.Sequential(compiled(nn.Sequential(net))), "the prefix '0.0.'"),
    ],
)
def test_names_of_wrapped_modules(wrap: Callable[[nn.Module], nn.Module], told: str) -> None:
    found = from_state_dicts(weights(wrap(BEFORE)), weights(wrap(AFTER)), MODEL)
    assert agrees(found)
    assert any(told in note for note in found.notes), found.notes


def test_names_without_the_models_own_prefix() -> None:
    inside = Model(module=nn.ModuleDict({"net": BEFORE}))
    found = from_state_dicts(weights(BEFORE), weights(AFTER), inside)
    assert [f"net.{name}" for name in DELTA] == list(found.update)
    assert any("the prefix 'net.' was added" in note for note in found.notes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_numbers_of_any_type(dtype: torch.dtype) -> None:
    given = {name: tensor.to(dtype) for name, tensor in DELTA.items()}
    found = from_arrays(given, MODEL)
    assert all(tensor.dtype == torch.float32 for tensor in found.update.tensors)
    assert agrees(found, atol=float(torch.finfo(dtype).eps) * float(DELTA.norm()))


@pytest.mark.parametrize(
    "given",
    [
        arrays(AFTER),
        [p.detach().numpy() for p in AFTER.parameters()],
        [p.detach().numpy() for p in AFTER.parameters() if p.requires_grad],
        weights(AFTER),
    ],
    ids=["state dict", "parameters", "trained parameters", "by name"],
)
def test_whole_weights_are_recognised(given: Any) -> None:
    found = from_arrays(given, MODEL)
    assert agrees(found)
    assert any("whole weights" in note for note in found.notes)


@pytest.mark.parametrize("factor", [1.0, -1.0, 100.0])
def test_a_delta_is_taken_as_it_is(factor: float) -> None:
    given = [(tensor * factor).numpy() for tensor in DELTA.tensors]
    found = from_arrays(given, MODEL)
    assert agrees(found, DELTA * factor, atol=1e-5)
    assert found.notes == ()


def test_gradients_by_autograd_and_by_backward() -> None:
    module = network(3)
    images, labels = torch.rand(2, 3, 8, 8), torch.tensor([1, 4])
    moving = [p for p in module.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(F.cross_entropy(module(images), labels), moving)
    model = Model(module=module)
    found = from_gradients(gradients, model)
    torch.autograd.backward(F.cross_entropy(module(images), labels))
    assert agrees(from_module(module, model), found.update)
    assert agrees(from_module(nn.DataParallel(module), model), found.update)
    assert agrees(from_module(compiled(module), model), found.update)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_gradients_by_opacus() -> None:
    """Its gradients of single examples, averaged, are the gradient of the mean loss."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    model = Model(module=module)
    images, labels = torch.rand(3, 3, 8, 8), torch.tensor([1, 4, 0])
    torch.autograd.backward(F.cross_entropy(module(images), labels))
    expected = from_module(module, model).update
    module.zero_grad()
    private = opacus.GradSampleModule(module)
    torch.autograd.backward(F.cross_entropy(private(images), labels))
    for parameter in private.parameters():
        parameter.grad = None
    assert agrees(from_module(private, model), expected, atol=1e-6)


def test_a_module_without_gradients() -> None:
    with pytest.raises(UpdateError, match=r"got none in 'body.0.weight': call backward\(\) first"):
        from_module(network(), MODEL)


# -- files -----------------------------------------------------------------------------------


def _npz(arrays: Any, path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, *arrays)


def _npz_named(tensors: Mapping[str, Tensor], path: Path) -> None:
    np.savez_compressed(path, **{name: t.numpy() for name, t in tensors.items()})  # type: ignore[arg-type]


WRITERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "our own": ("u.safetensors", lambda path: DELTA.save(path)),
    "safetensors, whole weights": (
        "w.safetensors",
        lambda path: safetensors.torch.save_file(weights(AFTER), path),
    ),
    "torch, state dict": ("w.pt", lambda path: torch.save(AFTER.state_dict(), path)),
    "torch, double precision": (
        "w.bin",
        lambda path: torch.save({n: t.double() for n, t in weights(AFTER).items()}, path),
    ),
    "torch, checkpoint": (
        "w.pth",
        lambda path: torch.save(
            {
                "epoch": 3,
                "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}},
                "model": {f"module.{name}": t for name, t in weights(AFTER).items()},
            },
            path,
        ),
    ),
    "torch, a list of gradients": ("g.pt", lambda path: torch.save(DELTA.tensors, path)),
    "numpy, in the order of the state dict": ("w.npz", lambda path: _npz(arrays(AFTER), path)),
    "numpy, by name": ("w.npz", lambda path: _npz_named(weights(AFTER), path)),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_files_of_other_tools(kind: str, tmp_path: Path) -> None:
    name, write = WRITERS[kind]
    write(tmp_path / name)
    assert agrees(read_capture(tmp_path / name, MODEL))


WHOLE = [kind for kind in WRITERS if "gradients" not in kind and kind != "our own"]


@pytest.mark.parametrize("kind", WHOLE)
def test_weights_with_their_buffers(kind: str, tmp_path: Path) -> None:
    name, write = WRITERS[kind]
    write(tmp_path / name)
    found, _ = read_weights(tmp_path / name, MODEL)
    for name, tensor in AFTER.state_dict().items():
        assert torch.equal(found.module.state_dict()[name], tensor)
    assert torch.equal(MODEL.parameters["fc.weight"], dict(BEFORE.named_parameters())["fc.weight"])
    assert torch.equal(found.parameters["fc.weight"], AFTER.state_dict()["fc.weight"])
    assert torch.equal(
        found.buffers["body.1.running_mean"], AFTER.state_dict()["body.1.running_mean"]
    )


class Evil:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('code was run')",)


def test_no_code_of_a_file_is_run(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pt"
    torch.save({"fc.weight": Evil()}, bad)
    np.savez(tmp_path / "bad.npz", np.array([Evil()], dtype=object))
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps([Evil()]))
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(UpdateError, match="expected") as error:
            read_capture(path, MODEL)
        assert "\n" not in str(error.value)


def _without(name: str) -> dict[str, Tensor]:
    return {n: t for n, t in weights(AFTER).items() if n != name}


MISTAKES: dict[str, tuple[Any, str]] = {
    "missing": (_without("fc.bias"), "misses 'fc.bias'"),
    "a similar name": (
        {**_without("fc.weight"), "fc2.weight": torch.zeros(5, 4)},
        "has 'fc2.weight', unknown to the model (the nearest is 'fc.weight')",
    ),
    "another network": ({"a.weight": torch.zeros(3)}, "misses 'body.0.weight' and 5 more"),
    "too few": (arrays(AFTER)[:4], "a list of 6 or 8 or 11 arrays"),
    "another order": (
        arrays(AFTER)[::-1],
        "whose number 0 is 'body.0.weight' of shape (4, 3, 3, 3)",
    ),
    "a shape": (
        {**weights(AFTER), "fc.bias": torch.zeros(7)},
        "'fc.bias' expected shape (5,), got (7,)",
    ),
    "not finite": ({**weights(AFTER), "fc.bias": torch.full((5,), torch.nan)}, "not finite"),
    "no numbers": ([np.array(["a"])] * 6, "expected tensors or arrays of numbers"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_what_does_not_fit_is_said_in_one_line(kind: str) -> None:
    given, told = MISTAKES[kind]
    with pytest.raises(UpdateError) as error:
        from_arrays(given, MODEL)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("none.pt", None, "found none at"),
        ("damaged.pt", b"PK\x03\x04 nothing", "cannot be read as tensors"),
        ("damaged.npz", b"PK\x03\x04 nothing", "expected arrays of numbers"),
        ("text.safetensors", b"hello", "cannot be read as tensors"),
    ],
)
def test_files_that_cannot_be_read(
    name: str, content: bytes | None, told: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UpdateError, match=told):
        read_capture(tmp_path / name, MODEL)
    with pytest.raises(WeightsError, match=told):
        read_weights(tmp_path / name, MODEL)


def test_an_archive_larger_than_the_weights_is_not_unpacked(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "large.npz", np.zeros(10_000_000))
    with pytest.raises(UpdateError, match="more than the model's weights"):
        read_capture(tmp_path / "large.npz", MODEL)


def test_weights_without_buffers_are_not_enough(tmp_path: Path) -> None:
    torch.save({n: p.detach() for n, p in AFTER.named_parameters()}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"misses 'body\.1\.running_mean'"):
        read_weights(tmp_path / "w.pt", MODEL)


def test_weights_after_a_large_step_are_still_weights() -> None:
    """A step half as long as the weights themselves."""
    rng = torch.Generator().manual_seed(2)
    far = {
        name: tensor + 0.6 * tensor.norm() / tensor.numel() ** 0.5 * _normal(tensor, rng)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in weights(BEFORE).items()
    }
    found = from_arrays(far, MODEL)
    assert any("whole weights" in note for note in found.notes)


def _normal(tensor: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(tensor.shape, generator=rng)


def test_the_model_must_be_at_the_weights_before() -> None:
    elsewhere = Model(module=network(9))
    with pytest.raises(UpdateError, match=r"got other weights: use the model .*at_weights"):
        from_state_dicts(weights(BEFORE), weights(AFTER), elsewhere)
    moved, _ = at_weights(weights(BEFORE), elsewhere)
    assert agrees(from_state_dicts(weights(BEFORE), weights(AFTER), moved))


def test_the_same_weights_twice_are_no_update() -> None:
    with pytest.raises(UpdateError, match="zeros only: are the weights before and after the same"):
        from_state_dicts(weights(BEFORE), weights(BEFORE), MODEL)


def test_named_arrays_of_words_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "words.npz", note=np.array(["a"]))
    with pytest.raises(UpdateError, match="expected tensors or arrays of numbers"):
        read_capture(tmp_path / "words.npz", MODEL)


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    DELTA.save(tmp_path / "sent")
    assert agrees(read_capture(tmp_path / "sent", MODEL))


# -- parts that are not sent -----------------------------------------------------------------

HEAD = {"fc.weight", "fc.bias"}


def without_head(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in state.items() if name not in HEAD}


@pytest.mark.parametrize("kept", [True, False], ids=["encrypted", "not sent"])
def test_hidden_parts_are_zero_in_every_form(kept: bool, tmp_path: Path) -> None:
    after = weights(AFTER)
    after = {**after, "fc.bias": torch.full((5,), 7.0)} if kept else without_head(after)
    delta = dict(DELTA) if kept else without_head(DELTA)
    torch.save({"model": after}, tmp_path / "after.pt")
    expected = Update({n: torch.zeros_like(t) if n in HEAD else t for n, t in DELTA.items()})
    for found in (
        from_state_dicts(weights(BEFORE), after, MODEL, hidden=HEAD),
        from_arrays(after, MODEL, hidden=HEAD),
        from_arrays(delta, MODEL, hidden=HEAD),
        read_capture(tmp_path / "after.pt", MODEL, hidden=HEAD),
    ):
        assert agrees(found, expected)
        assert any("2 tensors are hidden" in note for note in found.notes)


def test_a_part_that_is_missing_may_be_hidden() -> None:
    with pytest.raises(UpdateError, match="does not send it, name it as hidden") as error:
        from_arrays(without_head(DELTA), MODEL)
    assert "\n" not in str(error.value)


def test_a_head_of_the_clients_own_may_miss_in_the_weights_before() -> None:
    model, notes = at_weights(without_head(weights(AFTER)), MODEL, hidden=HEAD)
    assert torch.equal(model.parameters["fc.bias"], MODEL.parameters["fc.bias"])
    assert torch.equal(model.parameters["body.0.bias"], weights(AFTER)["body.0.bias"])
    assert any("2 hidden tensors are missing" in note for note in notes)
    with pytest.raises(UpdateError, match="misses 'fc"):
        at_weights(without_head(weights(AFTER)), MODEL)


def test_weights_far_away_after_a_large_step_are_still_weights() -> None:
    after = weights(BEFORE)
    rng = torch.Generator().manual_seed(0)
    after["fc.weight"] = after["fc.weight"] + 40 * torch.randn(5, 4, generator=rng)
    found = from_arrays(after, MODEL)
    assert any("whole weights" in note for note in found.notes)
    assert float(found.update["body.0.weight"].abs().max()) == 0
