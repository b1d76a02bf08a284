"""Updates: algebra, restart axis, files, and fitting a model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from gifd.errors import UpdateError
from gifd.updates import Update

pytestmark = pytest.mark.numerical

SHAPES = {"z.weight": (3, 2), "a.bias": (3,), "scale": ()}
seeds = st.integers(0, 10**6)
factors = st.floats(-10, 10).filter(lambda factor: abs(factor) > 1e-3)


def draw(seed: int, restarts: int | None = None) -> Update:
    rng = torch.Generator().manual_seed(seed)
    axis = () if restarts is None else (restarts,)
    return Update(
        {
            name: torch.randn((*axis, *shape), generator=rng, dtype=torch.float64)
            for name, shape in SHAPES.items()
        },
        restarts=restarts,
    )


def equal(update: Update, expected: Update) -> bool:
    return (
        list(update) == list(expected)
        and update.restarts == expected.restarts
        and all(torch.allclose(update[n], expected[n], rtol=1e-12) for n in expected)
    )


def by_tensor(function: Callable[..., Tensor], *updates: Update) -> Update:
    """Plain arithmetic: `function` on each tensor."""
    first = updates[0]
    return Update(
        {name: function(*(update[name] for update in updates)) for name in first},
        restarts=first.restarts,
    )


@given(seeds, factors, st.sampled_from([None, 1, 3]))
def test_algebra_is_that_of_each_tensor(seed: int, factor: float, restarts: int | None) -> None:
    u, v = draw(seed, restarts), draw(seed + 1, restarts)
    assert equal(u + v, by_tensor(lambda a, b: a + b, u, v))
    assert equal(u - v, by_tensor(lambda a, b: a - b, u, v))
    assert equal(u * factor, by_tensor(lambda a: a * factor, u))
    assert equal(factor * u, by_tensor(lambda a: a * factor, u))
    assert equal(u / factor, by_tensor(lambda a: a / factor, u))
    assert equal(-u, by_tensor(lambda a: -a, u))
    assert equal(u.add_scaled(v, factor), by_tensor(lambda a, b: a + factor * b, u, v))
    assert equal(u.map(torch.exp), by_tensor(torch.exp, u))


def flat(update: Update) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in update.tensors])


@given(seeds)
def test_products_are_those_of_the_concatenated_vectors(seed: int) -> None:
    u, v = draw(seed), draw(seed + 1)
    assert u.dot(v).item() == pytest.approx((flat(u) * flat(v)).sum().item())
    assert u.norm().item() == pytest.approx(flat(u).norm().item())
    assert u.dots(v).tolist() == pytest.approx([(u[n] * v[n]).sum().item() for n in u])
    assert u.squares().tolist() == pytest.approx([u[n].square().sum().item() for n in u])


@given(seeds, st.integers(1, 4))
def test_stacked_updates_act_as_each_restart_by_itself(seed: int, restarts: int) -> None:
    each = [draw(seed + r) for r in range(restarts)]
    other = draw(seed - 1)
    stacked = Update.stack(each)
    assert stacked.restarts == restarts
    dots, norms = stacked.dots(other), stacked.norm()
    assert dots.shape == (len(SHAPES), restarts)
    for r, alone in enumerate(each):
        assert equal(stacked.restart(r), alone)
        assert equal((stacked - other).restart(r), alone - other)
        assert torch.allclose(dots[:, r], alone.dots(other))
        assert torch.allclose(norms[r], alone.norm())


@given(seeds, st.sampled_from([None, 2]))
def test_products_at_once_are_dots_and_squares_and_so_are_their_derivatives(
    seed: int, restarts: int | None
) -> None:
    u = draw(seed, restarts).map(lambda t: t.requires_grad_())
    v = draw(seed + 1, restarts).map(lambda t: t.requires_grad_())
    leaves = [*u.tensors, *v.tensors]

    def derivatives(dots: Tensor, squares: Tensor) -> list[Tensor]:
        value = (dots.sin() * squares.log1p()).sum()
        first = torch.autograd.grad(value, leaves, create_graph=True)
        norm = torch.stack([slope.square().sum() for slope in first]).sum()
        return [value, *first, *torch.autograd.grad(norm, leaves)]

    at_once = derivatives(*u.products(v))
    for ours, plain in zip(at_once, derivatives(u.dots(v), u.squares()), strict=True):
        assert torch.allclose(ours, plain, rtol=1e-10)


def test_the_algebra_is_differentiable_until_detached() -> None:
    u, v = draw(0).map(lambda t: t.requires_grad_()), draw(1)
    (gradient,) = torch.autograd.grad((u * 2.0 + v).dot(v), u["z.weight"])
    assert torch.allclose(gradient, 2 * v["z.weight"])
    assert not u.detach()["z.weight"].requires_grad


def test_its_size_and_its_words() -> None:
    assert draw(0).numel == 10
    assert draw(0, restarts=3).numel == 30
    assert repr(draw(0)) == "Update(3 tensors, 10 numbers)"
    assert repr(draw(0, restarts=3)) == "Update(3 tensors, 30 numbers, restarts=3)"


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: Update({}),
        lambda: Update({"a": torch.zeros(2)}, restarts=3),
        lambda: Update({"a": torch.zeros(())}, restarts=1),
        lambda: draw(0).restart(0),
        lambda: draw(0) + Update({"other": torch.zeros(1)}),
        lambda: Update.stack([draw(0), Update({"other": torch.zeros(1)})]),
        lambda: draw(0) + draw(1, restarts=2),
        lambda: draw(0, restarts=3) - draw(1, restarts=2),
    ],
)
def test_what_does_not_go_together_is_refused(mistake: Callable[[], Update]) -> None:
    with pytest.raises(UpdateError, match=r"restart|at least one tensor|tensor names") as error:
        mistake()
    assert "\n" not in str(error.value)


@given(seeds)
def test_conform_puts_the_tensors_in_the_order_of_the_model(seed: int) -> None:
    update = draw(seed)
    parameters = {n: torch.zeros(SHAPES[n], dtype=torch.float64) for n in reversed(SHAPES)}
    assert list(update.conform(parameters)) == list(parameters)
    assert equal(update.conform(parameters).conform(update), update)
    stacked = Update.stack([update, update])
    assert stacked.conform(parameters).restarts == 2


def test_of_many_faults_five_are_named_and_the_rest_counted() -> None:
    parameters = {f"p{i}": torch.zeros(2) for i in range(9)}
    update = Update({name: torch.full((2,), torch.nan) for name in parameters})
    with pytest.raises(UpdateError, match=r"'p4' holds values that are not finite; and 4 more$"):
        update.conform(parameters)


def test_conform_names_every_fault_in_one_line() -> None:
    parameters = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    parameters["gone"] = torch.zeros(1)
    update = Update(
        {
            "z.weight": torch.zeros(2, 3),
            "a.bias": torch.tensor([0.0, float("nan"), 0.0]),
            "scale": torch.tensor(float("inf")),
            "extra": torch.zeros(1),
        }
    )
    with pytest.raises(UpdateError) as error:
        update.conform(parameters)
    assert str(error.value) == (
        "the update does not fit the model: missing 'gone'; unknown 'extra'; "
        "'z.weight' expected shape (3, 2), got (2, 3); "
        "'a.bias' holds values that are not finite; 'scale' holds values that are not finite"
    )


def test_conform_counts_what_it_does_not_name() -> None:
    parameters = {f"p{i}": torch.zeros(1) for i in range(6)}
    with pytest.raises(UpdateError, match="missing 'p1', 'p2', 'p3' and 2 more"):
        Update({"p0": torch.zeros(1)}).conform(parameters)


@pytest.mark.parametrize("restarts", [None, 2])
def test_a_saved_update_comes_back(tmp_path: Path, restarts: int | None) -> None:
    update = draw(0, restarts)
    update.save(tmp_path / "u.safetensors")
    back = Update.load(tmp_path / "u.safetensors")
    assert list(back) == list(SHAPES)
    assert back.restarts == restarts
    assert all(torch.equal(back[name], update[name]) for name in SHAPES)


def test_a_file_of_others_is_read(tmp_path: Path) -> None:
    save_file({"b": torch.ones(2), "a": torch.zeros(1)}, tmp_path / "u.safetensors")
    back = Update.load(tmp_path / "u.safetensors")
    assert {name: tensor.tolist() for name, tensor in back.items()} == {"b": [1, 1], "a": [0]}
    assert back.restarts is None


@pytest.mark.parametrize("content", [None, b"", b"no tensors at all", b"\x08" + bytes(20)])
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "u.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UpdateError, match=r"expected a safetensors file .*u\.safetensors") as error:
        Update.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "metadata",
    [
        {"gifd.order": "b"},
        {"gifd.order": "a\nb\nc"},
        {"gifd.order": "a\na\nb"},
        {"gifd.order": "a\nb", "gifd.restarts": "two"},
        {"gifd.order": "a\nb", "gifd.restarts": "7"},
    ],
)
def test_a_file_whose_metadata_lies_is_refused(tmp_path: Path, metadata: dict[str, str]) -> None:
    path = tmp_path / "u.safetensors"
    save_file({"a": torch.zeros(2, 1), "b": torch.ones(2, 2)}, path, metadata=metadata)
    with pytest.raises(UpdateError, match=r"metadata does not fit|restart axis of 7"):
        Update.load(path)
