"""`main_test.py report`: one page with everything in it that is known of an experiment, and nothing from elsewhere."""

import base64
import html.parser
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.helpers import EDITED_STATUSES, contrast
from tests.run_helpers import flip_bit
from tests.trained_models import CLASSES, Command, add_notes, command, trained
from utils.utils_report import heat_picture
from utils.utils_state_file import write_model
from views.occlusion import occlusion_map
from views.view_base import View
from views.view_classification import ClassificationView

__all__ = ["command", "trained"]  # fixtures

VOID = {"meta", "img", "br", "hr", "link", "input"}
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(html.parser.HTMLParser):
    """The tables and pictures of a page; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.addresses, self.cells, self._open = "", [], [], []  # type: ignore[var-annotated]
        self.feed(text)
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if self._open and {"td", "th"} & set(self._open):
            self.cells[-1] += data


@pytest.fixture
def experiment(trained: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(trained.parent, tmp_path / "tiny"))


@pytest.fixture
def report(command: Command) -> Callable[..., Page]:
    def run(*folders: Path, arguments: tuple[object, ...] = (), status: int = 0) -> Page:
        output = folders[0].parent / "page.html"
        assert command("report", *folders, "--output", output, *arguments) == status
        return Page(output.read_text(encoding="utf-8"))

    return run


@pytest.mark.parametrize(("epochs", "is_known"), [(None, True), (1, False)])
def test_the_last_iteration_is_named_where_the_options_know_it(
    experiment: Path, report: Callable[..., Page], epochs: int | None, is_known: bool
) -> None:
    newest = max((experiment / "options").iterdir())
    options = json.loads(newest.read_text())
    options["train"] |= {"total_iter": 100, "total_epochs": epochs}
    newest.write_text(json.dumps(options))
    text = report(experiment, arguments=("--recorded",)).text
    assert "60" in text
    assert ("60 of 100" in text) == is_known


def rgb(colour: str) -> NDArray[np.float64]:
    return np.array(list(bytes.fromhex(colour[1:]))) / 255


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_page_has_what_verify_and_the_run_say(
    trained: Path, experiment: Path, report: Callable[..., Page], command: Command, tmp_path: Path
) -> None:
    page = report(experiment)
    command("verify", trained / "best_model.pth", "--json", tmp_path / "found.json", "--output", tmp_path / "out")
    found = json.loads((tmp_path / "found.json").read_text())
    assert f"{found['metrics']['accuracy']:.4f}" in page.text
    for row in found["classes"]:
        start = page.cells.index(row["class"])
        expected = ["-" if row[name] is None else f"{row[name]:.3f}" for name in ("precision", "recall", "f1")]
        assert page.cells[start + 1 : start + 4] == expected
    matrix = [f"{count:.0f}" for count in found["metrics"]["confusion_matrix"][2]]
    assert any(page.cells[i + 1 : i + 8] == matrix for i, cell in enumerate(page.cells) if cell == CLASSES[2])
    for expected_text in (
        "measures as recorded",
        "2,599",
        "python main_test.py verify",
        "train.G_optimizer_lr",
        "torch",
    ):
        assert expected_text in page.text
    manifest = json.loads((trained / "60_manifest.json").read_text())
    assert f"G {manifest['files']['G']['sha256'][:12]}" in page.text


@pytest.mark.parametrize("edited", ["{}", "[1]", '{"iteration": "x"}'])
def test_a_manifest_that_somebody_wrote_is_left_out(experiment: Path, report: Callable[..., Page], edited: str) -> None:
    manifests = sorted((experiment / "models").glob("*_manifest.json"))
    kept = json.loads(manifests[1].read_text())["files"]["G"]["sha256"][:12]
    dropped = json.loads(manifests[0].read_text())["files"]["G"]["sha256"][:12]
    assert dropped in report(experiment).text
    manifests[0].write_text(edited)
    page = report(experiment)
    assert f"G {kept}" in page.text
    assert f"G {dropped}" not in page.text


def test_nothing_on_the_page_is_elsewhere(experiment: Path, report: Callable[..., Page]) -> None:
    page = report(experiment)
    assert page.addresses
    assert [each for each in page.addresses if not each.startswith(("data:image/png;base64,", "#"))] == []
    text = (experiment.parent / "page.html").read_text()
    assert not re.findall(r"url\((?!#)|@import|<script|<link", text)
    pictures = [each.partition(",")[2] for each in page.addresses if each.startswith("data:")]
    for picture in pictures:
        assert cv2.imdecode(np.frombuffer(base64.b64decode(picture), np.uint8), cv2.IMREAD_COLOR) is not None


def test_interruptions_are_marked_and_listed(experiment: Path, report: Callable[..., Page]) -> None:
    assert "resumed here" not in report(experiment).text
    launch = {"launched": "2026-01-01 10:00:00", "ended": "2026-01-01 11:00:00", "machine": {"ranks": 2}}
    launches = [
        {**launch, "from_iter": 0, "to_iter": 20, "state": "RUNNING"},
        {**launch, "from_iter": 20, "to_iter": 40, "state": "PREEMPTED"},
        {**launch, "from_iter": 40, "to_iter": 60, "state": "DONE"},
    ]
    change_json(experiment / "status.json", launches=launches)
    page = report(experiment)
    for text in (
        "killed, resumed here",
        "stopped, resumed here",
        "3, resumed 2 times",
        "3:00:00",
        "--nproc_per_node=2",
    ):
        assert text in page.text
    assert "Not bit for bit" not in page.text
    for number, start in enumerate(launches):
        start["machine"] = {"ranks": 2, "code": "same files", "commit": f"{number}abc"}
    change_json(experiment / "status.json", launches=launches)
    page = report(experiment)
    assert "git checkout 0abc" in page.text
    assert "Not bit for bit" not in page.text
    launches[2]["machine"] = {"ranks": 1}
    change_json(experiment / "status.json", launches=launches)
    assert "Not bit for bit: later launches had other ranks" in report(experiment).text


@pytest.mark.parametrize("edited", EDITED_STATUSES)
def test_what_somebody_wrote_into_the_status_is_ignored(
    experiment: Path, report: Callable[..., Page], edited: dict[str, Any]
) -> None:
    change_json(experiment / "status.json", **edited)
    assert "Learning Rate" in report(experiment, arguments=("--recorded",)).text


@pytest.mark.parametrize("edited", [{"train": [1]}, {"train": None}, {"train": {"total_iter": "many"}}])
def test_what_somebody_wrote_into_the_options_is_no_traceback(
    experiment: Path, report: Callable[..., Page], edited: dict[str, Any]
) -> None:
    for path in (experiment / "options").glob("*.json"):
        change_json(path, **edited)
    assert "Learning Rate" in report(experiment, arguments=("--recorded",)).text


def test_the_command_to_reproduce_gives_the_same_model(
    experiment: Path, report: Callable[..., Page], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = report(experiment).text
    line = next(line for line in text.splitlines() if line.startswith("python main_train.py"))
    assert "Not bit for bit" not in text
    arguments = line.removeprefix("python ").split()
    import main_train

    monkeypatch.setattr("sys.argv", [*arguments, "--set", f"path.root={experiment.parent}"])
    assert main_train.main() == 0, capsys.readouterr().err
    for name in ("60_G.pth", "60_E.pth", "60_optimizerG.pth"):
        again = experiment.parent / "tiny_again" / "models" / name
        assert again.read_bytes() == (experiment / "models" / name).read_bytes()


def test_a_launch_with_other_options_than_the_first_is_named_beside_the_command(
    experiment: Path, report: Callable[..., Page]
) -> None:
    assert "later ones" not in report(experiment, arguments=("--recorded",)).text
    (first,) = (experiment / "options").glob("*.json")
    content = json.loads(first.read_text())
    content["train"]["total_iter"] = 90
    (first.parent / "tiny_991231_235959.json").write_text(json.dumps(content))
    page = report(experiment, arguments=("--recorded",))
    assert f"-opt {first} " in page.text
    assert "# The first launch; later ones had other train.total_iter\n" in f"{page.text}\n"


def test_what_is_damaged_or_missing_is_said_and_the_rest_is_shown(
    experiment: Path, report: Callable[..., Page]
) -> None:
    flip_bit(experiment / "models" / "best_model.pth")
    page = report(experiment, status=1)
    assert "checksum" in page.text
    assert "Learning Rate" in page.text
    (experiment / "models" / "best_model.pth").unlink()
    (experiment / "models" / "final_model.pth").unlink()
    assert "running, or killed" not in page.text
    (experiment / "status.json").write_text("{")
    (experiment / "metrics.csv").unlink()
    page = report(experiment, status=1)
    assert "! holds no best_model.pth" in page.text
    assert f"checkpoint sets is {experiment / 'models' / '60_E.pth'}" in page.text
    assert "unknown: status.json does not say it" in page.text


def test_a_note_in_the_metrics_has_no_curve(experiment: Path, report: Callable[..., Page]) -> None:
    add_notes(experiment / "metrics.csv")
    page = report(experiment, arguments=("--recorded",))
    assert "Learning Rate" in page.text
    assert "Notes" not in page.text


def test_without_its_data_a_run_shows_what_it_recorded(experiment: Path, report: Callable[..., Page]) -> None:
    recorded = torch.load(experiment / "models" / "best_model.pth", weights_only=True)["metrics"]
    absent = ("--set", "datasets.test.dataroot=absent.csv", "--set", "datasets.test.fallback=null")
    page = report(experiment, arguments=absent, status=1)
    assert "the model was not run: datasets.test.dataroot" in page.text
    assert f"{recorded['accuracy']:.4f}" in page.text
    page = report(experiment, arguments=("--recorded",))
    assert f"{recorded['accuracy']:.4f}" in page.text
    assert "Where attention lies" not in page.text


def test_several_experiments_are_compared(trained: Path, experiment: Path, report: Callable[..., Page]) -> None:
    for path in (experiment / "options").glob("*.json"):
        content = json.loads(path.read_text())
        content["train"]["G_optimizer_lr"] = 0.125
        content["task"] = "<b>other</b>"
        path.write_text(json.dumps(content))
    best = experiment / "models" / "best_model.pth"
    write_model(best, {**torch.load(best, weights_only=True), "synthetic": "drawn faces"})
    page = report(experiment, trained.parent, arguments=("--recorded",))
    start = page.cells.index("train.G_optimizer_lr")
    assert page.cells[start + 1 : start + 3] == ["0.125", "0.03"]
    assert '"<b>other</b>"' in page.cells
    assert "train.E_decay" not in page.cells
    accuracy = page.cells.index("accuracy")
    assert page.cells[accuracy + 1] == page.cells[accuracy + 2] != ""
    shown = page.text[: page.text.index("Options that differ")]
    name = f"{experiment.parent.name}/tiny"
    assert name in shown, "two folders of one name are told apart"
    assert f"<h2>{name}</h2>" in (experiment.parent / "page.html").read_text()
    assert f"SYNTHETIC DATA {name}: drawn faces" in shown.partition("Results")[0]


def test_the_numbers_of_the_matrix_are_legible_on_every_colour_in_light_and_dark(
    experiment: Path, report: Callable[..., Page]
) -> None:
    report(experiment, arguments=("--recorded",))
    style = (experiment.parent / "page.html").read_text().partition("</style>")[0]
    (strongest,) = re.findall(r"color-mix\(in srgb, var\(--line-1\) calc\(([\d.]+) \* var\(--share\)\)", style)
    colours: dict[str, list[str]] = {
        name: re.findall(rf"--{name}: (#\w+)", style) for name in ("ink", "panel", "line-1")
    }
    for ink, panel, line in zip(*colours.values(), strict=True):
        for share in np.linspace(0, float(strongest), 11):
            assert contrast(share * rgb(line) + (1 - share) * rgb(panel), rgb(ink)) > 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("report", "{}"), "it has no options/"),
        (("report", "{}/tiny", "{}/tiny"), "named twice"),
        (("report", "{}/tiny", "--num_samples", "0"), "must be at least 1"),
        (("report", "{}/absent"), "not the folder of an experiment"),
    ],
)
def test_wrong_arguments_are_2_and_one_message(
    experiment: Path, command: Command, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert command(*(each.format(experiment.parent) for each in arguments)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize("white", [255, 1.0])
def test_attention_lies_where_the_network_looks(white: float) -> None:
    """The network is asked about raw images: floats stay floats, and so does their grey."""
    darkest = []

    def left_eye(images: torch.Tensor) -> torch.Tensor:
        darkest.append(float(images.min()))
        brightness = images[:, 0, 12:20, 8:16].float().mean(dim=(1, 2)) / white * 4
        return torch.stack([brightness, torch.ones_like(brightness)], dim=1)

    image = np.full((1, 48, 48), 40, np.uint8)
    image[:, 12:20, 8:16] = 250
    raw = torch.from_numpy(image if white == 255 else image.astype(np.float32) / 255)
    heat, worst = occlusion_map(left_eye, ClassificationView("ab").agreement, raw)
    assert darkest == pytest.approx([40 / 255 * white] * 2)
    assert heat.shape == (48, 48)
    peak = np.unravel_index(heat.argmax(), heat.shape)
    assert 12 <= peak[0] < 20
    assert 8 <= peak[1] < 16
    assert np.abs(heat[:, 36:]).max() < 1e-6
    assert worst.argmax() == 1, "with the bright square covered it says the other class"
    shown = heat_picture(image, heat, side=96)
    assert shown.shape == (3, 96, 96)
    assert heat_picture(image, heat * 0, side=96).shape == (3, 96, 96)


def test_what_is_not_positive_is_not_bounded() -> None:
    """Less than a tenth is positive: the line goes around that, not around the picture."""
    heat = np.full((48, 48), -0.5, np.float32)
    heat[4:16, 4:16] = 1
    shown = heat_picture(np.full((1, 48, 48), 120, np.uint8), heat, side=96)
    line = np.argwhere((shown == 20).all(axis=0))
    assert line.min() > 2
    assert line.max() < 40


def test_agreement_does_not_saturate_and_falls_with_the_distance() -> None:
    view = ClassificationView("abc")
    sure = torch.tensor([[30.0, 0.0, 0.0], [40.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    found = view.agreement(sure, sure[:1])
    assert found[1] > found[0] > found[2]
    points = torch.tensor([[[0.0, 0.0]], [[3.0, 1.0]]])
    assert View().agreement(points, points[:1]).tolist() == [0.0, -2.0]


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_a_sideways_scroll(
    experiment: Path, report: Callable[..., Page], tmp_path: Path, width: int
) -> None:
    report(experiment)
    (tmp_path / "frame.html").write_text(
        f"<iframe id=f src=page.html style='width:{width}px;height:900px;border:0'></iframe><script>"
        "f.onload = () => { const page = f.contentDocument.documentElement;"
        " const broken = [...f.contentDocument.images].filter(each => !each.naturalWidth).length;"
        " document.title = JSON.stringify([page.scrollWidth, f.contentDocument.images.length, broken]); }</script>"
    )
    browser = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic",
               "--disable-background-networking", "--disable-component-update", "--disable-sync",
               "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000",
               "--virtual-time-budget=5000", "--dump-dom", (tmp_path / "frame.html").as_uri()]  # fmt: skip
    shown = subprocess.run(browser, capture_output=True, text=True, timeout=120, check=True).stdout
    title = re.search(r"<title>(.*?)</title>", shown)
    assert title, shown
    scroll_width, num_images, num_broken = json.loads(title[1])
    assert scroll_width <= width
    assert num_images > 7
    assert num_broken == 0
