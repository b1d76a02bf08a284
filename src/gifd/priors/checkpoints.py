"""Checkpoint files of public generators, in five formats.

| format | file | recognised by |
|---|---|---|
| gifd | `.safetensors` written by `write_checkpoint` | its metadata |
| rosinality, StyleGAN2 | `.pt` with `g_ema` | its names |
| NVIDIA, StyleGAN2 | `.pkl` | its ending |
| Hugging Face, BigGAN-deep | `pytorch_model.bin` with `config.json`, or the folder | its names |
| DCGAN | a state dict with `main.0.weight` | its names |

All are read as tensors only; nothing in a file is executed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gifd.errors import InputError, WeightsError, one_line
from gifd.files import is_file, is_folder
from gifd.priors.biggan import biggan, fold_spectral_norm
from gifd.priors.dcgan import dcgan
from gifd.priors.generator import Generator
from gifd.priors.pickles import Network, read_networks
from gifd.priors.stylegan2 import stylegan2
from gifd.tensor_files import (
    plain,
    read_metadata,
    read_tensors,
    require_finite,
    write_tensors,
)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A generator's weights under our names, and settings that they do not contain.

    Args:
        architecture: a key of `ARCHITECTURES`.
        tensors: by name, as for that architecture's builder.
        options: arguments of the builder that belong to the weights (a clamp, an epsilon).
    """

    architecture: str
    tensors: Mapping[str, Tensor] = field(repr=False)
    options: Mapping[str, Any]

    def generator(self, *, name: str, **options: Any) -> Generator:
        """The generator; `options` are further arguments of its builder.

        Raises:
            WeightsError: the tensors do not fit the architecture.
        """
        build, _ = ARCHITECTURES[self.architecture]
        return build(self.tensors, **{**self.options, **options}, name=name)

    def parse(self, settings: Sequence[str]) -> dict[str, Any]:
        """Options written as `key=value`, as on a command line.

        Raises:
            InputError: an option that the architecture does not have, or a value out of range.
        """
        _, known = ARCHITECTURES[self.architecture]
        options = {}
        for setting in settings:
            key, _, value = setting.partition("=")
            if key not in known:
                raise InputError(
                    f"expected an option of {self.architecture} ({', '.join(known) or 'none'}), "
                    f"got '{setting}'"
                )
            try:
                options[key] = known[key](value)
            except ValueError as error:
                raise InputError(f"expected {key}={error}, got '{setting}'") from None
        return options


def _one_of(*names: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in names:
            raise ValueError(" or ".join(names))
        return value

    return parse


def _some_of(*names: str) -> Callable[[str], tuple[str, ...]]:
    def parse(value: str) -> tuple[str, ...]:
        chosen = tuple(name for name in value.split(",") if name)
        if not set(chosen) <= set(names):
            raise ValueError(f"{', '.join(names)} with commas between, or nothing")
        return chosen

    return parse


def _pixels(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise ValueError("a number of pixels")
    return int(value)


def _share(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError("a number") from None


ARCHITECTURES: Mapping[
    str, tuple[Callable[..., Generator], Mapping[str, Callable[[str], object]]]
] = {
    "stylegan2": (
        stylegan2,
        {
            "latent": _one_of("z", "w", "w+"),
            "noise": _one_of("random", "const"),
            "optimise": _some_of("w", "noise"),
            "resolution": _pixels,
            "area": _pixels,
        },
    ),
    "biggan-deep": (biggan, {"truncation": _share, "area": _pixels}),
    "dcgan": (dcgan, {}),
}
"""The builders by name, and the arguments that a user can choose, with their parsers."""


_CARRIED: Mapping[str, Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
    "stylegan2": {
        "clamp": (
            "nothing or a number above 0",
            lambda v: v is None or _within(v, sys.float_info.max),
        ),
        "mapping_lr": ("a number above 0 and at most 1", lambda v: _within(v, 1.0)),
    },
    "biggan-deep": {
        "upsample": (
            "true or false a layer",
            lambda v: isinstance(v, list) and all(isinstance(up, bool) for up in v),
        ),
        "eps": ("a number above 0 and at most 1", lambda v: _within(v, 1.0)),
    },
}
"""Arguments that belong to the weights and are stored with them, with their valid values."""


def _within(value: object, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= most


def _check_options(checkpoint: Checkpoint, path: Path) -> None:
    known = _CARRIED.get(checkpoint.architecture, {})
    for name, value in checkpoint.options.items():
        if name not in known or not known[name][1](value):
            wanted = f"{name} to be {known[name][0]}" if name in known else "no option of that name"
            raise WeightsError(f"{path}: expected {wanted}, got {name}={one_line(repr(value), 40)}")


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint in any of the formats above.

    Raises:
        WeightsError: missing, damaged, containing code, or of an unknown architecture.
    """
    if is_folder(path):
        path = path / "pytorch_model.bin"
    checkpoint = _read(path)
    require_finite(checkpoint.tensors, path)
    _check_options(checkpoint, path)
    return checkpoint


def _read(path: Path) -> Checkpoint:
    if path.suffix == ".pkl":
        return _nvidia(path)
    tensors = read_tensors(path)
    known = _ours(path, tensors)
    if known is not None:
        return known
    if "g_ema.input.input" in tensors or "input.input" in tensors:
        return _rosinality(path, tensors)
    if "embeddings.weight" in tensors and "generator.gen_z.bias" in tensors:
        return _hugging_face(path, tensors)
    if any(n.startswith("synthesis.b") and n.endswith(".const") for n in tensors):
        return Checkpoint(architecture="stylegan2", tensors=tensors, options={})
    if any(name.endswith("main.0.weight") for name in tensors):
        return Checkpoint(architecture="dcgan", tensors=tensors, options={})
    raise WeightsError(
        f"{path} holds no generator we know ({', '.join(ARCHITECTURES)}): its tensors are "
        f"{one_line(', '.join(sorted(tensors)[:3]), 80)}, ..."
    )


def write_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write one safetensors file with the architecture and the options in its metadata.

    Raises:
        InputError: another ending than .safetensors, or it cannot be written.
    """
    metadata = {
        "format": "gifd prior",
        "architecture": checkpoint.architecture,
        "options": json.dumps(dict(checkpoint.options)),
    }
    write_tensors(checkpoint.tensors, metadata, path)


def _ours(path: Path, tensors: Mapping[str, Tensor]) -> Checkpoint | None:
    metadata = read_metadata(path)
    if metadata.get("format") != "gifd prior":
        return None
    architecture = metadata.get("architecture", "none")
    try:
        options = json.loads(metadata.get("options", "{}"))
    except (ValueError, RecursionError):
        options = None
    known = isinstance(options, dict) and set(options) <= set(_CARRIED.get(architecture, ()))
    if architecture not in ARCHITECTURES or not known:
        raise WeightsError(
            f"{path}: expected a prior of {', '.join(ARCHITECTURES)}, got "
            f"'{one_line(architecture, 40)}' with the options {one_line(options, 80)}"
        )
    return Checkpoint(architecture=architecture, tensors=tensors, options=options)


def _nvidia(path: Path) -> Checkpoint:
    networks = read_networks(path)
    net = networks.get("G_ema") or networks.get("G")
    synthesis = net.child("synthesis") if net is not None else None
    if net is None or synthesis is None or synthesis.child("b4.conv1") is None:
        raise WeightsError(
            f"{path}: expected a StyleGAN2 generator 'G_ema' with the block b4, got "
            f"{one_line(', '.join(f'{name} ({n.kind})' for name, n in networks.items()), 120)}"
        )
    options = {
        "clamp": _attribute(net, "synthesis.b4.conv1", "conv_clamp", None),
        "mapping_lr": _attribute(net, "mapping.fc0", "bias_gain", 0.01),
    }
    for name, block in synthesis.children():
        if block.state.get("architecture", "skip") != "skip":
            raise WeightsError(
                f"{path}: expected RGB skips, block {one_line(name, 40)} has another architecture"
            )
    tensors = {name: plain(name, tensor, path) for name, tensor in net.tensors()}
    return Checkpoint(architecture="stylegan2", tensors=tensors, options=options)


def _attribute(net: Network, path: str, name: str, default: float | None) -> Any:
    module = net.child(path)
    return default if module is None else module.state.get(name, default)


def _rosinality(path: Path, tensors: Mapping[str, Tensor]) -> Checkpoint:
    prefix = "g_ema." if "g_ema.input.input" in tensors else ""
    own = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
    depth = sum(key.startswith("style.") and key.endswith(".weight") for key in own)
    found: dict[str, Tensor] = {}
    try:
        for index in range(depth):
            for part in ("weight", "bias"):
                found[f"mapping.fc{index}.{part}"] = own[f"style.{index + 1}.{part}"]
        if "latent_avg" in tensors:
            found["mapping.w_avg"] = tensors["latent_avg"].flatten()
        found["synthesis.b4.const"] = own["input.input"][0]
        _rosinality_layer(own, "conv1", 0, "synthesis.b4.conv1", found)
        _rosinality_colours(own, "to_rgb1", "synthesis.b4.torgb", found)
        block = 0
        while f"to_rgbs.{block}.bias" in own:
            here = f"synthesis.b{8 * 2**block}"
            for half in (0, 1):
                index = 2 * block + half
                _rosinality_layer(own, f"convs.{index}", index + 1, f"{here}.conv{half}", found)
            _rosinality_colours(own, f"to_rgbs.{block}", f"{here}.torgb", found)
            found[f"{here}.resample_filter"] = own[f"to_rgbs.{block}.upsample.kernel"] / 4
            block += 1
    except (KeyError, IndexError, RuntimeError) as error:
        raise WeightsError(
            f"{path}: expected the StyleGAN2 of rosinality's code, {one_line(error)} is missing or "
            "misshapen"
        ) from None
    return Checkpoint(architecture="stylegan2", tensors=found, options={})


def _rosinality_layer(
    own: Mapping[str, Tensor], old: str, noise: int, new: str, found: dict[str, Tensor]
) -> None:
    found[f"{new}.weight"] = own[f"{old}.conv.weight"][0]
    found[f"{new}.bias"] = own[f"{old}.activate.bias"]
    found[f"{new}.noise_strength"] = own[f"{old}.noise.weight"].reshape(())
    found[f"{new}.affine.weight"] = own[f"{old}.conv.modulation.weight"]
    found[f"{new}.affine.bias"] = own[f"{old}.conv.modulation.bias"]
    map_ = own.get(f"noises.noise_{noise}")
    if map_ is None:  # older files have none; their code uses random ones
        side = 4 * 2 ** ((noise + 1) // 2)
        map_ = torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(noise))
    found[f"{new}.noise_const"] = map_[0, 0]


def _rosinality_colours(
    own: Mapping[str, Tensor], old: str, new: str, found: dict[str, Tensor]
) -> None:
    found[f"{new}.weight"] = own[f"{old}.conv.weight"][0]
    found[f"{new}.bias"] = own[f"{old}.bias"].flatten()
    found[f"{new}.affine.weight"] = own[f"{old}.conv.modulation.weight"]
    found[f"{new}.affine.bias"] = own[f"{old}.conv.modulation.bias"]


def _hugging_face(path: Path, tensors: Mapping[str, Tensor]) -> Checkpoint:
    options: dict[str, Any] = {}
    beside = path.parent / "config.json"
    if is_file(beside):
        try:
            config = json.loads(beside.read_text(encoding="utf-8"))
            options["upsample"] = [layer[0] for layer in config["layers"]]
            options["eps"] = config["eps"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise WeightsError(
                f"{beside}: expected BigGAN's config with 'layers' and 'eps', got: "
                f"{one_line(error)}"
            ) from None
    return Checkpoint(
        architecture="biggan-deep",
        tensors=fold_spectral_norm(tensors),
        options=options,
    )
