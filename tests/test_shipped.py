"""The included priors: complete, small, documented, available offline, and useful."""

import pytest
import torch

from gifd import catalog
from gifd.campaign.demo import demo_face
from gifd.campaign.prior_score import score_prior
from gifd.errors import InputError, WeightsError
from gifd.priors import digiface_dcgan, faces64
from gifd.weights import SHIPPED, ShippedFile, fetch, local_path

FILES = [file for file in catalog.WEIGHTS.values() if isinstance(file, ShippedFile)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_shipped_prior_is_what_its_entry_and_its_card_say(file: ShippedFile) -> None:
    path = fetch(file, offline=True)
    assert path == local_path(file)
    assert path.stat().st_size == file.size_bytes < 15e6
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    for part in (file.sha256, "research", "gifd prior train", "kernel distance", "seed"):
        assert part in card
    prior = catalog.prior(file.name, offline=True)
    assert prior.name == file.name
    images = prior.sample(16, seed=0)
    assert images.shape == (16, 3, 64, 64)
    assert float((images - images.mean(0)).abs().mean()) > 0.05  # no two are alike


def test_every_shipped_file_has_an_entry() -> None:
    assert {path.name for path in SHIPPED.glob("*.safetensors")} == {f.member for f in FILES}


def test_options_of_a_shipped_prior() -> None:
    assert catalog.prior("faces64", options=["latent=z", "resolution=32"]).image_shape[1] == 32
    assert catalog.prior("faces64", shape=(3, 32, 32)).image_shape == (3, 32, 32)
    with pytest.raises(InputError, match="expected options of 'faces64'"):
        catalog.prior("faces64", options=["truncation=1"])


def test_a_damaged_or_missing_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = FILES[0]
    fields = {**whole.__dict__, "sha256": "0" * 64}
    with pytest.raises(WeightsError, match="install gifd again"):
        fetch(ShippedFile(**fields))
    fields = {**whole.__dict__, "member": "none.safetensors"}
    with pytest.raises(WeightsError, match="install gifd again"):
        fetch(ShippedFile(**fields))


def test_faces64_comes_nearer_to_a_face_it_never_saw_than_the_dcgan() -> None:
    """In its latent, by squared error; not by ST-LPIPS on this image."""
    face = demo_face()
    images = torch.stack([face, face.flip(2)])
    own, other = (
        score_prior(g, images, steps=60, samples=16) for g in (faces64(), digiface_dcgan())
    )
    assert min(own.psnr["latent"]) > max(other.psnr["latent"])
