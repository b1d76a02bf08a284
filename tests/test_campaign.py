"""Trials, records, the store, and the report."""

import dataclasses
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from gifd import catalog
from gifd.attacker.observe import observe
from gifd.attacks import dlg, ig
from gifd.campaign.demo import demo_face
from gifd.campaign.record import Outcome, Record
from gifd.campaign.store import Store
from gifd.campaign.trial import Trial
from gifd.errors import InputError
from gifd.federation.client import Client
from gifd.metrics import MSE, PSNR, SSIM
from gifd.report import write_report
from gifd.search import Cosine


@pytest.fixture(scope="module")
def client() -> Client:
    return Client(model=catalog.victim("convnet", classes=5, size=32, seed=1))


@pytest.fixture(scope="module")
def outcome(client: Client) -> Outcome:
    trial = Trial(
        names=["bars.png"],
        images=torch.linspace(0, 1, 32).repeat(1, 3, 32, 1),
        labels=torch.tensor([2]),
        client=client,
        victim={"name": "convnet"},
        attack=ig(restarts=2).with_steps(4),
        metrics=(PSNR(), SSIM(), MSE()),
    )
    return trial.run()


def test_a_record_survives_the_file(outcome: Outcome, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add(outcome)
    (stored,) = store
    assert stored.record == outcome.record
    assert stored.record.stlpips is None
    with Image.open(stored.private) as picture:
        assert picture.size == (32, 32)


def test_a_record_agrees_with_the_pictures(client: Client, outcome: Outcome) -> None:
    assert outcome.private is not None
    difference = outcome.answer.double() - outcome.private.double()
    assert outcome.record.mse == pytest.approx(float(difference.square().mean()), rel=1e-6)
    assert outcome.record.evaluations == 2 * 4 + 2, "each step, and each restart's exact distance"
    assert len(outcome.record.phases[0].curve) == 4
    observation = observe(client.step(outcome.private, torch.tensor([2]))[0])
    replayed = observation.replay(outcome.answer, torch.tensor([2])).detach()
    distance = float(Cosine()(replayed, observation.update))
    assert outcome.record.distance == pytest.approx(distance, rel=1e-4), "of the exact replay"


def test_a_record_says_what_chose_and_which_replay_a_curve_is_of(outcome: Outcome) -> None:
    record = outcome.record
    assert record.selection == "Cosine(norm=0.0) of the exact replay"
    assert [phase.smoothing for phase in record.phases] == [0.3]
    own = min(v for row in record.phases[0].curve for v in row if v is not None)
    assert record.distance is not None
    assert record.distance > 1.05 * own, "the smoothed replay is nearer"


def test_a_record_of_an_earlier_version_is_read_and_claims_nothing(outcome: Outcome) -> None:
    old = json.loads(outcome.record.model_dump_json()) | {"schema_version": 2}
    del old["selection"]
    for phase in old["phases"]:
        del phase["smoothing"]
    read = Record.model_validate(old)
    assert (read.schema_version, read.selection) == (2, None)
    assert [phase.smoothing for phase in read.phases] == [None]


def test_a_record_that_version_3_wrote_is_read_and_reported(
    outcome: Outcome, tmp_path: Path
) -> None:
    """Its settings have a field that phases have no more, and an attacker by its former name."""
    text = (Path(__file__).parent / "golden" / "record-3.json").read_text()
    written = json.loads(text)
    assert written["schema_version"] == 3
    assert written["ledger"]["attacker"] == "told"
    assert "merge" in written["settings"]["phases"][0]
    read = Record.model_validate_json(text)
    assert (read.schema_version, read.at_once, read.tf32) == (3, 1, None)
    assert read.ledger["attacker"] == "adaptive"
    assert read.phases[-1].name == "consensus"
    store = Store(tmp_path)
    stored = store.add(outcome)
    (stored.folder / "record.json").write_text(text)
    assert "adaptive" in write_report(store).read_text()


def test_a_batch_is_in_the_order_of_the_private_images(tmp_path: Path) -> None:
    """An update has no order of images; labels and scores follow the assignment."""
    pictures = torch.stack([torch.full((3, 32, 32), level) for level in (0.9, 0.1, 0.5)])
    trial = Trial(
        names=["white", "black", "grey"],
        images=pictures,
        labels=torch.tensor([4, 0, 2]),
        client=Client(model=catalog.victim("convnet", classes=5, size=32, seed=1)),
        victim={"name": "convnet"},
        attack=ig(restarts=1).with_steps(30),
        metrics=(PSNR(), MSE()),
    )
    outcome = trial.run()
    assert outcome.record.image == "white and 2 more"
    assert [image.name for image in outcome.record.images] == ["white", "black", "grey"]
    assert {image.label_used for image in outcome.record.images} == {0, 2, 4}
    assert outcome.private is not None
    each = (outcome.answer.double() - outcome.private.double()).square().mean((1, 2, 3))
    assert [image.mse for image in outcome.record.images] == pytest.approx(each.tolist())
    assert outcome.record.mse == pytest.approx(float(each.mean()))
    pixels = [(picture * 255).round().byte().numpy().tobytes() for picture in pictures]
    sums = [hashlib.sha256(each).hexdigest() for each in pixels]
    assert [image.sha256 for image in outcome.record.images] == sums
    brightness = outcome.answer.mean((1, 2, 3))
    assert brightness.argsort().tolist() == [1, 2, 0]


def test_a_record_tells_the_true_label_from_the_one_that_was_used() -> None:
    """DLG searches the labels: after one step they are still the initial ones."""
    model = catalog.victim("convnet", classes=100, size=32, seed=1)
    trial = Trial(
        names=["bars.png"],
        images=torch.linspace(0, 1, 32).repeat(1, 3, 32, 1),
        labels=torch.tensor([2]),
        client=Client(model=model),
        victim={"name": "convnet"},
        attack=dlg().with_steps(1),
        metrics=(MSE(),),
    )
    observation = observe(trial.client.step(trial.images, trial.labels)[0])
    (used,) = trial.attack(observation, seed=trial.seed).labels.tolist()
    assert used != 2
    (image,) = trial.run().record.images
    assert (image.label, image.label_used) == (2, used)


def test_nothing_is_overwritten(outcome: Outcome, tmp_path: Path) -> None:
    store = Store(tmp_path)
    folders = {store.add(outcome).folder for _ in range(3)}
    assert len(folders) == 3
    assert len(list(store)) == 3


def test_a_trial_whose_pictures_cannot_all_be_written_has_no_record(
    outcome: Outcome, tmp_path: Path
) -> None:
    (phase,) = outcome.record.phases
    unwritable = phase.model_copy(update={"name": "n" * 300})  # longer than a file's name may be
    record = outcome.record.model_copy(update={"phases": [unwritable]})
    store = Store(tmp_path)
    with pytest.raises(InputError, match="expected to write"):
        store.add(dataclasses.replace(outcome, record=record))
    assert [*tmp_path.rglob("private.png")], "it was begun"
    assert not [*tmp_path.rglob("record.json")]
    assert list(store) == []
    whole = store.add(outcome)
    assert [stored.folder for stored in store] == [whole.folder]


def test_after_a_trial_is_deleted_the_next_number_is_still_new(
    outcome: Outcome, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    first, second, third = (store.add(outcome).folder for _ in range(3))
    shutil.rmtree(first)
    fourth = store.add(outcome).folder
    shutil.rmtree(third)
    fifth = store.add(outcome).folder
    assert [stored.folder for stored in store] == [second, fourth, fifth], "in their order"
    assert [folder.name[:4] for folder in (second, fourth, fifth)] == ["0002", "0004", "0005"]


def test_a_foreign_record_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "trials" / "0001-x"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text('{"psnr": 1}')
    with pytest.raises(InputError, match="a record of gifd"):
        list(Store(tmp_path))


def test_an_empty_store_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one finished trial"):
        write_report(Store(tmp_path))


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.best: list[str] = []
        self.within: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.within = values.get("class")
        if "src" in values:
            self.sources.append(values["src"] or "")
        if "href" in values:
            self.links.append(values["href"] or "")

    def handle_endtag(self, tag: str) -> None:
        self.within = None

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.within == "best":
            self.best.append(data)


def test_the_report_is_self_contained_and_tells_the_ledger(
    outcome: Outcome, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    store.add(outcome)
    name = "<script>alert(1)</script>.png"
    images = [outcome.record.images[0].model_copy(update={"name": name})]
    renamed = outcome.record.model_copy(update={"image": name, "images": images})
    store.add(dataclasses.replace(outcome, record=renamed))
    page = _Page()
    page.feed(write_report(store).read_text(encoding="utf-8"))
    assert page.links == []
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    for words in ("bars.png", "FedSGD()", "not granted", "inferred", "<script>alert(1)</script>"):
        assert words in page.text
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.size[1] > 2 * 192


def test_curves_of_exact_and_smoothed_replays_are_not_joined(
    outcome: Outcome, tmp_path: Path
) -> None:
    (phase,) = outcome.record.phases
    exact = phase.model_copy(update={"smoothing": 0.0})
    both = outcome.record.model_copy(update={"phases": [exact, exact, phase]})
    store = Store(tmp_path)
    store.add(dataclasses.replace(outcome, record=both, phases=outcome.phases * 3))
    page = write_report(store).read_text(encoding="utf-8")
    lines = re.findall(r"<path [^>]*/>", page)
    assert ["stroke-dasharray" in line for line in lines] == [False, True]
    lengths = [line.count("L") + 1 for line in re.findall(r'<path d="M([^"]+)"', page)]
    assert lengths == [2 * len(phase.curve), len(phase.curve)]
    assert "not comparable with solid lines" in page


@pytest.mark.parametrize(
    ("former", "name"), [("naive", "static"), ("told", "adaptive"), ("estimated", "estimated")]
)
def test_the_attacker_of_an_old_record_has_its_name_of_today(
    former: str, name: str, outcome: Outcome
) -> None:
    old = json.loads(outcome.record.model_dump_json())
    old["ledger"]["attacker"] = former
    read = Record.model_validate_json(json.dumps(old))
    assert read.ledger == outcome.record.ledger | {"attacker": name}


def test_trials_behind_other_defences_are_told_apart(outcome: Outcome, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add(outcome)
    for attacker in ("static", "adaptive"):
        ledger = outcome.record.ledger | {"attacker": attacker}
        changed = {"defenses": ["Noise(std=0.1)"], "ledger": ledger}
        record = outcome.record.model_copy(update=changed)
        store.add(dataclasses.replace(outcome, record=record))
    page = _Page()
    page.feed(write_report(store).read_text(encoding="utf-8"))
    assert "defended by Noise(std=0.1), static" in page.text
    assert "defended by Noise(std=0.1), adaptive" in page.text
    assert page.text.count("the client's defences") == 3, "each has its own ledger"
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.size[1] > 3 * 192


def test_the_report_sets_the_best_value_of_each_metric_in_bold(
    outcome: Outcome, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    for values in (
        {"psnr": 11.0, "ssim": 0.3, "mse": 0.08, "stlpips": 0.5},
        {"psnr": 12.0, "ssim": 0.2, "mse": 0.06, "stlpips": None},
        {"psnr": 10.0, "ssim": 0.1, "mse": 0.1, "stlpips": 0.4},
    ):
        record = outcome.record.model_copy(update=values)
        store.add(dataclasses.replace(outcome, record=record))
    page = _Page()
    page.feed(write_report(store).read_text(encoding="utf-8"))
    assert [float(text.split()[0]) for text in page.best] == [0.3, 12.0, 0.06, 0.4]


def test_infinite_psnr_is_null_and_exact(outcome: Outcome) -> None:
    record = outcome.record.model_copy(update={"psnr": None})
    assert Record.model_validate_json(record.model_dump_json()).psnr is None


def test_the_demo_attacks_a_face_that_a_dependency_ships() -> None:
    face = demo_face()
    assert face.shape == (3, 64, 64)
    assert 0 <= float(face.min()) < float(face.max()) <= 1
    red, green, blue = face[:, 28:36, 28:36].mean((1, 2)).tolist()
    assert red > green > blue, "the middle of the crop is skin"
