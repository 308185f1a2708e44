"""`main_test.py export`: files that say what the network says, in batches of any size, or no file at all."""

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from commands import export
from commands.inference_graph import FORMATS, InferenceGraph, capture
from data.dataset_fer2013 import Fer2013
from models.model_plain import Batch, ModelPlain
from models.network_fer_resnet import FerResNet
from models.select_model import MODELS, define_model
from models.select_network import NETWORKS, define_G
from tests.helpers import ONE_RANK, changed, tiny_option_mapping, validated
from tests.run_helpers import flip_bit
from tests.test_networks import SMALL, images
from tests.trained_models import CLASSES, Command, command, trained
from utils import utils_option

README = Path(__file__).parent.parent / "README.md"
__all__ = ["command", "trained"]  # fixtures

Run = Callable[[np.ndarray], np.ndarray]

WAYS = {
    "onnx": (),
    "onnx, all inside": ("--with_preprocessing", "--with_softmax", "--opset", 18),
    "torch_export": ("--format", "torch_export"),
    "torch_export, all inside": ("--format", "torch_export", "--with_preprocessing", "--with_softmax"),
}


@pytest.fixture(autouse=True)
def no_time_for_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_SPEED_SECONDS", 0.0)
    monkeypatch.setattr(export, "_SPEED_BATCHES", (1, 3))


@pytest.fixture(scope="module")
def model_file(trained: Path) -> Path:
    """The best model with a dropout that its graph must not have."""
    content = torch.load(trained / "best_model.pth", weights_only=True)
    content["netG"]["dropout"] = 0.5
    torch.save(content, trained / "dropping.pth")
    return trained / "dropping.pth"


@pytest.fixture
def exported(model_file: Path, command: Command) -> Callable[[str], Path]:
    """The file of one of WAYS, made once."""

    def make(way: str) -> Path:
        path = model_file.with_name(f"{way}.{'onnx' if 'onnx' in way else 'pt2'}")
        if not path.exists():
            assert command("export", model_file, "--output", path, *WAYS[way]) == 0
        return path

    return make


@pytest.fixture(scope="module")
def raw_faces(trained: Path) -> np.ndarray:
    """uint8 (21, 1, 48, 48): PublicTest, from the CSV alone."""
    opt = utils_option.validate(torch.load(trained / "best_model.pth", weights_only=True)["options"])
    lines = Path(opt.datasets["train"].dataroot or "").read_text().splitlines()[1:]
    rows = [line.split(",")[1].split() for line in lines if line.endswith("PublicTest")]
    return np.array(rows, dtype=np.uint8).reshape(-1, 1, 48, 48)


def network_of(path: Path) -> torch.nn.Module:
    content = torch.load(path, weights_only=True)
    net = define_G(utils_option.validate(content["options"]).netG).eval()
    net.load_state_dict(content["model_state_dict"])
    return net


def normalised(raw: np.ndarray) -> np.ndarray:
    return (raw.astype(np.float32) / 255 - 0.5) / 0.25


def runner(path: Path) -> Run:
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path)
        return lambda images: session.run(None, {"input": images})[0]
    module = torch.export.load(path).module()
    return lambda images: module(torch.from_numpy(images)).detach().numpy()


def metadata_of(path: Path) -> dict[str, Any]:
    if path.suffix == ".onnx":
        found = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    else:
        found = dict.fromkeys(("task", "net_type", "iteration", "class_names", "input", "transforms", "output"), "")
        torch.export.load(path, extra_files=found)
    return {key: json.loads(value) for key, value in found.items()}


@pytest.mark.parametrize("way", WAYS)
def test_a_graph_says_what_the_network_says(
    model_file: Path, exported: Callable[[str], Path], raw_faces: np.ndarray, way: str
) -> None:
    is_whole = "inside" in way
    with torch.no_grad():
        logits = network_of(model_file)(torch.from_numpy(normalised(raw_faces)))
    expected = (logits.softmax(dim=1) if is_whole else logits).numpy()
    run = runner(exported(way))
    for size in (1, 2, 5, 21):
        found = run((raw_faces if is_whole else normalised(raw_faces))[:size])
        assert found.dtype == np.float32
        assert found.shape == (size, 7)
        np.testing.assert_allclose(found, expected[:size], rtol=0, atol=1e-6 * np.abs(expected).max() + 1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_the_metadata_are_all_that_a_program_must_know(exported: Callable[[str], Path], way: str) -> None:
    found = metadata_of(exported(way))
    is_whole = "inside" in way
    assert found["class_names"] == list(CLASSES)
    assert (found["task"], found["net_type"], found["iteration"] % 20) == ("tiny", "fer_resnet", 0)
    assert found["input"]["shape"] == [1, 48, 48]
    assert found["input"]["dtype"] == ("uint8" if is_whole else "float32")
    assert ("/ 255" in found["input"]["meaning"]) != is_whole
    assert found["transforms"] == ([] if is_whole else [{"type": "normalize", "mean": 0.5, "std": 0.25}])
    assert found["output"]["shape"] == [7]
    assert ("probabilities" in found["output"]["meaning"]) == is_whole


def test_an_onnx_file_is_sound_and_has_the_opset_that_was_asked_for(exported: Callable[[str], Path]) -> None:
    model = onnx.load(exported("onnx, all inside"))
    onnx.checker.check_model(model, full_check=True)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
    assert {node.op_type for node in model.graph.node}.isdisjoint({"Dropout", "BatchNormalization"})
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_file_stands_beside_its_model_and_is_taken_for_no_part_of_a_set(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in "GE":
        assert command("export", trained / f"60_{part}.pth", "--format", "torch_export") == 0
        path = trained / f"60_{part}.pt2"
        assert f"{path}: torch.export" in capsys.readouterr().out
        assert not any(path.match(f"*_{each}.pth") for each in ("G", "E", "optimizerG"))
    images = normalised(np.full((2, 1, 48, 48), 99, dtype=np.uint8))
    of_G, of_E = (runner(trained / f"60_{part}.pt2")(images) for part in "GE")
    assert not np.allclose(of_G, of_E, atol=1e-4), "these are two networks"


@pytest.mark.parametrize("way", FORMATS)
@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - {"fer_resnet"}))  # which the other tests export
def test_every_network_can_be_exported(name: str, way: str, tmp_path: Path) -> None:
    options = changed(
        tiny_option_mapping(tmp_path, "unused"), netG={"net_type": name, **SMALL[name]}, train__E_decay=0.0
    )
    model = define_model(validated(options), ONE_RANK, seed=0)
    data, _ = FORMATS[way].write(capture(InferenceGraph(model), images(name, 2)), {}, None)
    inputs = images(name, 5)
    with torch.no_grad():
        expected = model.netG.eval()(inputs)
    difference = (FORMATS[way].load(data, 1)(inputs) - expected).abs().max()
    assert difference <= 1e-5 * expected.abs().max()


class Mirror(ModelPlain):
    """The example of README: more in feed_data and netG_forward than the network."""

    def feed_data(self, batch: Batch) -> None:
        super().feed_data(batch)
        self.views = torch.cat([self.input, self.input.flip(-1)])

    def netG_forward(self, netG: torch.nn.Module) -> torch.Tensor:
        first, second = netG(self.views).chunk(2)
        return (first + second) / 2


def test_a_model_of_ones_own_is_exported_as_it_is_tested(
    trained: Path, command: Command, raw_faces: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODELS, "_entries", {**MODELS._entries, "mirror": Mirror})
    output = tmp_path / "mirror.onnx"
    assert command("export", trained / "best_model.pth", "--output", output, "--set", "model=mirror") == 0
    net, images = network_of(trained / "best_model.pth"), torch.from_numpy(normalised(raw_faces))
    with torch.no_grad():
        expected = ((net(images) + net(images.flip(-1))) / 2).numpy()
    for size in (1, 3):
        np.testing.assert_allclose(runner(output)(images[:size].numpy()), expected[:size], rtol=0, atol=1e-5)


def test_how_training_stores_images_does_not_matter(
    trained: Path, command: Command, raw_faces: np.ndarray, tmp_path: Path
) -> None:
    output = tmp_path / "stored.pt2"
    arguments = ("--format", "torch_export", "--output", output, "--set", "train.channels_last=true")
    assert command("export", trained / "best_model.pth", *arguments) == 0
    images = normalised(raw_faces)
    with torch.no_grad():
        expected = network_of(trained / "best_model.pth")(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(runner(output)(images), expected, rtol=0, atol=1e-5)


def test_outputs_need_not_be_classes(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    content = torch.load(trained / "best_model.pth", weights_only=True)
    content["class_names"] = []
    torch.save(content, tmp_path / "numbers.pth")
    assert command("export", tmp_path / "numbers.pth", "--format", "torch_export") == 0
    assert "same class" not in capsys.readouterr().out
    assert metadata_of(tmp_path / "numbers.pt2")["class_names"] == []
    assert command("export", tmp_path / "numbers.pth", "--with_softmax") == 2
    assert "are no classes" in capsys.readouterr().err


@pytest.mark.parametrize("view", ["classification", "plain"])
def test_the_largest_output_is_the_class_of_a_sample_that_has_one(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, view: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(Fer2013, "view", view)
    output = tmp_path / "labels.pt2"
    assert command("export", trained / "best_model.pth", "--format", "torch_export", "--output", output) == 0
    assert ("same class" in capsys.readouterr().out) == (view == "classification")


def test_it_is_said_on_which_inputs_a_graph_was_checked(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def said(*arguments: object) -> str:
        output = tmp_path / "checked.pt2"
        assert command("export", trained, "--format", "torch_export", "--output", output, *arguments) == 0
        shown = capsys.readouterr()
        return shown.out + shown.err

    assert "21 inputs of fer2013 PublicTest, in batches of 1, 2, 21" in said()
    absent = ("--set", "datasets.test.dataroot=absent.csv")
    shown = said(*absent, "--num_samples", 1)
    assert "1 random inputs, in batches of 1, 2" in shown
    assert "RANDOM DATA: datasets.test.dataroot: there is no fer2013 data" in shown
    small = {"dataset_type": "synthetic_faces", "num_training": 7, "num_public_test": 7, "num_private_test": 7}
    assert "SYNTHETIC DATA" in said(*absent, "--set", f"datasets.test.fallback={json.dumps(small)}")


def test_a_folder_is_no_place_for_a_graph(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = tmp_path / "graph.pt2"
    output.mkdir()
    assert command("export", trained, "--format", "torch_export", "--output", output) == 2
    assert f"--output: {output} is a folder; give the name of a file" in capsys.readouterr().err


CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "other weights": lambda output: output + 1e-3 * output.abs().max(),
    "right for two": lambda output: output * output.shape[0] / 2,
    "dropping": lambda output: torch.nn.functional.dropout(output, 0.5),
    "another shape": lambda output: output[None],
    "not finite": lambda output: output / 0,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_graph_that_differs_is_not_written(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, change: str,
) -> None:  # fmt: skip
    forward = FerResNet.forward

    def changed_while_exporting(net: FerResNet, images: torch.Tensor) -> torch.Tensor:
        output = forward(net, images)
        return CHANGES[change](output) if torch.compiler.is_exporting() else output

    monkeypatch.setattr(FerResNet, "forward", changed_while_exporting)
    (tmp_path / "graph.pt2").write_text("of an earlier export")
    assert command("export", trained, "--format", "torch_export", "--output", tmp_path / "graph.pt2") == 1
    message = capsys.readouterr().err
    assert "does not say what the model says, and nothing is written" in message
    assert "in a batch of 21" in message
    assert [path.name for path in tmp_path.iterdir()] == ["graph.pt2"]
    assert (tmp_path / "graph.pt2").read_text() == "of an earlier export"


def _by_value(net: FerResNet, images: torch.Tensor) -> torch.Tensor:
    return net.head.bias.expand(images.shape[0], 7) * (2 if images.sum() > 0 else 1)


def _by_size(net: FerResNet, images: torch.Tensor) -> torch.Tensor:
    return net.head.bias.expand(images.shape[0], 7) * (2 if images.shape[0] > 8 else 1)


def _by_length(net: FerResNet, images: torch.Tensor) -> torch.Tensor:
    return net.head.bias.expand(len(images), 7)


def _broken(net: FerResNet, images: torch.Tensor) -> torch.Tensor:
    if torch.compiler.is_exporting():
        raise KeyError("features")
    return net.head.bias.expand(images.shape[0], 7)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (_by_value, "data-dependent"),
        (_by_size, "beyond 8"),
        (_by_length, "Constraints violated"),
        (_broken, "features"),
    ],
)
def test_a_network_that_has_no_graph_gets_one_message_and_status_2(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, forward: Callable[..., torch.Tensor], reason: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(FerResNet, "forward", forward)
    assert command("export", trained, "--output", tmp_path / "graph.onnx") == 2
    message = capsys.readouterr().err
    assert "this network cannot be exported" in message
    assert reason in message
    assert len(message.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_operation_without_a_form_in_onnx_gets_one_message_and_status_2(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forward = FerResNet.forward
    monkeypatch.setattr(FerResNet, "forward", lambda net, x: torch.special.airy_ai(forward(net, x)))
    assert command("export", trained, "--output", tmp_path / "graph.onnx") == 2
    message = capsys.readouterr().err
    assert "has no form in ONNX" in message
    assert "airy" in message
    assert "Traceback" not in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", FORMATS["onnx"].packages)
def test_a_missing_package_is_named(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, name: str,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, name, None)
    assert command("export", trained, "--output", tmp_path / "graph.onnx") == 2
    message = capsys.readouterr().err
    assert f"{name} cannot be imported" in message
    assert "pip install onnx onnxscript onnxruntime" in message
    assert not list(tmp_path.iterdir())


def test_a_damaged_model_and_one_that_is_not_finite_are_refused(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    content = torch.load(trained / "best_model.pth", weights_only=True)
    torch.save(content, tmp_path / "damaged.pth")
    flip_bit(tmp_path / "damaged.pth")
    content["model_state_dict"]["head.bias"][3] = torch.nan
    torch.save(content, tmp_path / "nan.pth")
    for name, reason in (("damaged", "checksum"), ("nan", "outputs are not finite")):
        assert command("export", tmp_path / f"{name}.pth") == 2
        assert reason in capsys.readouterr().err
    assert {path.suffix for path in tmp_path.iterdir()} == {".pth"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--num_samples", 0), "must be at least 1"),
        (("--output", "best_model.pth"), "onnx files end in .onnx"),
        (("--format", "torch_export", "--output", "model.onnx"), "torch_export files end in .pt2"),
        (("--format", "torch_export", "--opset", 18), "torch_export has none"),
        (("--opset", 7), "7 cannot be written"),
        (("--set", "val.x=1"), "val.x"),
    ],
)
def test_wrong_arguments_are_2_and_one_message(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], message: str
) -> None:
    before = (trained / "best_model.pth").read_bytes()
    assert command("export", trained / "best_model.pth", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert (trained / "best_model.pth").read_bytes() == before


def test_a_place_that_cannot_be_written_is_2(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    assert command("export", trained, "--format", "torch_export", "--output", tmp_path / "file" / "graph.pt2") == 2
    message = capsys.readouterr().err
    assert str(tmp_path / "file") in message
    assert "Traceback" not in message


def test_the_example_of_the_readme_says_what_the_network_says(
    model_file: Path, exported: Callable[[str], Path], raw_faces: np.ndarray, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    example = re.search(r"^ {4}import json\n(?:(?: {4}.*)?\n)*", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert example, "README.md shows no program that runs an exported model"
    shutil.copy(exported("onnx, all inside"), tmp_path / "faces.onnx")
    cv2.imwrite(str(tmp_path / "face.png"), raw_faces[3, 0])
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile(textwrap.dedent(example[0]), "README.md", "exec"), {})
    with torch.no_grad():
        expected = network_of(model_file)(torch.from_numpy(normalised(raw_faces[3:4])))[0].softmax(dim=0)
    assert capsys.readouterr().out == f"{CLASSES[int(expected.argmax())]} {expected.max():.3f}\n"
