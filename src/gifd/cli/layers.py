"""`gifd layers`: which part of an update gives what away, alone and left out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from gifd import catalog, terminal
from gifd.campaign.part import EXACT, Leak, Part, Parts, leak
from gifd.campaign.sweep import Keys, Results, Row, answered, seeds_of
from gifd.campaign.trial import Trial
from gifd.cli.choices import (
    chosen_attacks,
    chosen_labels,
    chosen_prior,
    chosen_public,
    chosen_victim,
)
from gifd.cli.options import (
    Classes,
    Device,
    Evaluations,
    MaxMemory,
    Offline,
    Preset,
    Prior,
    Protocol,
    PublicImages,
    Restarts,
    Seed,
    Shape,
    Victim,
    VictimSeed,
    device_of,
    shape_of,
)
from gifd.errors import InputError, UnexplainedError, one_line
from gifd.federation.client import Client
from gifd.federation.defenses.hide import Hide, parts_of
from gifd.images import read_image
from gifd.metrics import PSNR
from gifd.report.layers import cells, write_layers
from gifd.terminal import one_line_errors

DEFAULT = ("peel", "ensemble")
COLUMNS = {"images", "attack", "preset", "evaluations", "distance", "seed", "psnr"}


@one_line_errors
def layers(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Private images, each a client's.")
    ],
    part: Annotated[
        list[str] | None,
        typer.Option(
            help="A part: 'layer1', 'conv1+bn1', '*.bias', 'head'; may be repeated. Default: the "
            "modules at --depth."
        ),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(
            help="Levels of modules from the top. Default: the first with several.", min=1
        ),
    ] = None,
    attacks: Annotated[
        list[str] | None,
        typer.Option(
            "--attack",
            help="As of 'gifd attack'; may be repeated: the best of them counts. Default: peel, "
            "ensemble.",
        ),
    ] = None,
    victim: Victim = "resnet18",
    classes: Classes = 10,
    victim_seed: VictimSeed = 0,
    protocol: Protocol = "fedsgd",
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="Class of the images, or numbers (1,0,1), as the victim's loss takes: one for "
            "all, or one each. Default: class 0."
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Instead of --label: a regular expression whose group is the class in a file name."
        ),
    ] = None,
    prior: Prior = None,
    public: PublicImages = None,
    preset: Preset = "strongest",
    evaluations: Evaluations = 400,
    restarts: Restarts = None,
    shape: Shape = None,
    seed: Seed = 0,
    device: Device = "auto",
    max_memory: MaxMemory = None,
    offline: Offline = False,
    out: Annotated[
        Path,
        typer.Option(help="Folder of the results; existing ones of these settings are reused."),
    ] = Path("runs/layers"),
) -> None:
    """Attack updates of which only one part is sent, or all but one, and compare."""
    names = attacks or DEFAULT
    model, image_shape = chosen_victim(
        victim,
        classes=classes,
        shape=shape_of(shape),
        seed=victim_seed,
        device=device_of(device, max_memory),
        offline=offline,
    )
    truth = chosen_labels(images, label or (), labels, model.task(image_shape))
    parts = part or parts_of(model, depth)
    hidden = {name: Hide(parts=name).hidden(model, image_shape) for name in parts}
    built = chosen_attacks(
        names,
        load=lambda: chosen_prior(prior, shape=image_shape, offline=offline),
        preset=preset,
        without=(),
        steps=None,
        evaluations=evaluations,
        restarts=restarts,
        public=chosen_public(public, names, shape=image_shape),
    )
    pictures = torch.stack(
        [read_image(path, size=image_shape[1:], channels=image_shape[0]) for path in images]
    )
    origin = {"name": victim, "classes": model.classes(image_shape), "seed": victim_seed}
    does = catalog.protocol(protocol, images=1)
    seeds = [seeds_of(index, seed=seed).trial for index in range(len(images))]
    results, keys = Results(out / "layers.jsonl"), Keys()

    def attacked(told: str, *defenses: Hide) -> Leak:
        """What the attacks make of all clients' updates."""
        rows = []
        for attack in built:
            trials = [
                Trial(
                    names=[path.name],
                    images=picture[None],
                    labels=own_label[None],
                    client=Client(model=model, protocol=does, defenses=defenses, seed=own),
                    victim=origin,
                    attack=attack,
                    metrics=[PSNR()],
                    seed=own,
                )
                for own, path, picture, own_label in zip(
                    seeds, images, pictures, truth, strict=True
                )
            ]
            rows.append(
                answered(
                    trials,
                    results,
                    keys,
                    cell={"kind": "layers", "sent": told, "victim": victim},
                    columns=COLUMNS,
                    what=f"{told}, {attack.name}",
                    told=terminal.progress,
                    expected=(UnexplainedError,),
                )
            )
        return leak([[_scored(row) for row in own] for own in zip(*rows, strict=True)])

    total = sum(tensor.numel() for tensor in model.parameters.values())
    found = Parts(
        victim=victim,
        setting=f"{', '.join(names)} ({preset}), at most {evaluations} evaluations; {does!r}; n = "
        f"{len(images)} images; one victim, {victim}; seed {seed}",
        images=[path.name for path in images],
        grey=float(PSNR()(torch.full_like(pictures, 0.5), pictures).mean()),
        whole=attacked("everything"),
        parts=[
            Part(
                name=name,
                share=sum(model.parameters[each].numel() for each in hidden[name]) / total,
                alone=attacked(f"{name} alone", Hide(all_but=name)),
                without=attacked(f"without {name}", Hide(parts=name)),
            )
            for name in parts
        ],
    )
    _table(found)
    terminal.say.print(f"report: {write_layers(found, out)}", soft_wrap=True)


def _scored(row: Row) -> tuple[float, str, bool] | None:
    """PSNR, attack, and whether the labels are right; None if the attack was refused."""
    if "refused" in row:
        return None
    found: Any = row
    try:
        psnr = EXACT if found["psnr"] is None else float(found["psnr"])
        right = all(each["label"] == each["label_used"] for each in found["images"])
        return psnr, str(found["attack"]), right
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"expected results of 'gifd layers', got {one_line(repr(row))}: name another --out"
        ) from None


def _table(found: Parts) -> None:
    rows = [("everything", "100.0%", *_words(found.whole), "", "")]
    rows += [
        (each.name, f"{each.share:.1%}", *_words(each.alone), *_words(each.without)[1:])
        for each in found.parts
    ]
    heads = ("part", "numbers", "label, alone", "PSNR, alone", "by", "PSNR, without", "by")
    terminal.table("", heads, rows, console=terminal.say)
    terminal.note(f"a grey picture, which says nothing, has {found.grey:.1f} dB")


def _words(leak: Leak) -> tuple[str, str, str]:
    told = cells(leak)
    return told["labels"], told["psnr"], told["by"]
