"""Hands with 21 joints in 3D: the skeleton on the image, and from the side, predicted against true."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from utils.utils_pose import mpjpe_mm, pa_mpjpe_mm, root_relative
from views.view_base import Box, Card, Finding, Image, Result, Sample, View

if TYPE_CHECKING:
    from utils.utils_visualise import Figure

Points = NDArray[np.float64]

# Okabe and Ito's colours, which colour-blind people tell apart; thumb to little finger.
_FINGERS = {"T": "#e69f00", "I": "#56b4e9", "M": "#009e73", "R": "#d55e00", "L": "#cc79a7"}
_BONES = [(0 if joint % 4 == 1 else joint - 1, joint) for joint in range(1, 21)]
_SIDE = 224  # pixels of a drawn view
_MAX_HEIGHT, _MAX_ASPECT = 4096, 8  # of an annotated copy, and of the image in it
_REACH_MM = 130.0  # from the middle of a drawn view to its border


class HandPoseView(View):
    """Joints (B, 21, 3) in mm relative to the wrist, in the order of FreiHAND: x right, y down, z away."""

    metrics = ("mpjpe", "pa_mpjpe", "avg_metric", "pck_auc", "pa_pck_auc", "joint_error")
    has_samples = True
    output_meaning = "joints in mm relative to the root joint: x right, y down, z away from the camera"
    sample_titles: ClassVar[Mapping[str, str]] = {"right": "The smallest errors", "wrong": "The largest errors"}

    def rows(self, result: Result) -> list[dict[str, Any]]:
        """The mean error of each joint, if it was measured."""
        errors = result.get("joint_error", [])
        assert isinstance(errors, list)
        return [{"joint": name, "error in mm": error} for name, error in zip(self.joint_names, errors, strict=False)]

    def choose(
        self, outputs: torch.Tensor, targets: torch.Tensor, num_samples: int, wrong: bool
    ) -> dict[str, list[int]]:
        """The samples of the smallest or of the largest MPJPE, and of the median one."""
        order = mpjpe_mm(root_relative(outputs), root_relative(targets)).argsort(descending=wrong, stable=True).tolist()
        middle = max(0, (len(order) - num_samples) // 2)
        extreme = "largest error" if wrong else "smallest error"
        return {extreme: order[:num_samples], "median error": order[middle : middle + num_samples]}

    def samples_figure(self, chosen: Mapping[str, Sequence[Sample]], title: str) -> "Figure":
        """Each image under its skeletons, beside a view in 3D; the true skeleton is dashed."""
        from utils.utils_visualise import skeletons_figure

        cells = {}
        for row, samples in chosen.items():
            cards = [self.card(each, side_views=False) for each in samples]
            cells[row] = [
                (card.picture, card.heading, _joints(each.output), _joints(each.target))
                for card, each in zip(cards, samples, strict=True)
            ]
        return skeletons_figure(cells, _BONES, list(_FINGERS.values()), title)

    def card(self, sample: Sample, side_views: bool = True) -> Card:
        """The image under both skeletons, and both from the side."""
        output, target = root_relative(sample.output[None]), root_relative(sample.target[None])
        error, aligned = mpjpe_mm(output, target), pa_mpjpe_mm(output, target)
        colours = np.broadcast_to(sample.image, (3, *sample.image.shape[1:]))
        picture = _resized(np.ascontiguousarray(np.moveaxis(colours, 0, -1)[..., ::-1]), _SIDE)
        if sample.camera is not None:
            scale = picture.shape[1] / sample.image.shape[2]
            for joints, is_true in ((sample.target, True), (sample.output, False)):
                _draw(picture, _projected(_joints(joints), sample.camera) * scale, is_true)
        if side_views:
            picture = np.hstack([picture, _side_view(_joints(sample.output), _joints(sample.target))])
        shown = np.ascontiguousarray(np.moveaxis(picture[..., ::-1], -1, 0))
        heading = f"MPJPE {error.item():.1f} mm"
        return Card(shown, heading, f"PA-MPJPE {aligned.item():.1f} mm; {sample.name}")

    def says(self, output: torch.Tensor, box: Box) -> dict[str, float | str]:  # noqa: ARG002
        """x, y and z of every joint in mm."""
        values = output.double().tolist()
        return {
            f"{name}_{axis}_mm": value
            for name, joint in zip(self.joint_names, values, strict=True)
            for axis, value in zip("xyz", joint, strict=True)
        }

    def find(self, image: Image) -> list[Box]:
        """The largest square in the middle: the network knows square images that a hand fills."""
        height, width = image.shape[:2]
        side = min(height, width)
        return [Box((width - side) // 2, (height - side) // 2, side, side)]

    def headline(self, output: torch.Tensor) -> str:
        """How far the fingers reach."""
        distances = torch.linalg.vector_norm(output[4::4].double() - output[0].double(), dim=1).tolist()
        reach = ", ".join(f"{finger} {distance:.0f}" for finger, distance in zip(_FINGERS, distances, strict=True))
        return f"wrist to fingertips {reach} mm"

    def annotate(self, image: Image, found: Sequence[Finding]) -> Image:
        """The image beside the skeleton from two sides: without a camera it has no place in the image."""
        from views.drawing import draw_box

        joints = _joints(found[0].output)
        image = image.copy()
        draw_box(image, found[0].box)
        views = np.hstack([_front_view(joints, None), _side_view(joints, None)])
        height = min(max(image.shape[0], _SIDE), _MAX_HEIGHT)
        parts = [_resized(each, height) for each in (image, views)]
        picture: Image = np.ascontiguousarray(np.hstack(parts), np.uint8)
        scale = height / 600
        _write(picture, self.headline(found[0].output), (6, height - 6 - round(8 * scale)), scale)
        return picture


def _joints(joints: torch.Tensor) -> Points:
    return np.asarray(joints.detach().cpu().double().numpy())


def _projected(joints_mm: Points, camera: tuple[Points, Points]) -> Points:
    """Pixels (J, 2) of root-relative joints, under (intrinsics, root in mm)."""
    intrinsics, root_mm = camera
    rays = (joints_mm + root_mm) @ intrinsics.T
    return np.asarray(rays[:, :2] / rays[:, 2:])


def _resized(image: Image, height: int) -> Image:
    """As high as that; of a long strip, which would become as wide as no file can hold, white makes up the height."""
    import cv2

    scale = min(height / image.shape[0], _MAX_ASPECT * height / image.shape[1])
    width, inside = (max(1, round(side * scale)) for side in (image.shape[1], image.shape[0]))
    resized = cv2.resize(image, (width, inside), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    white = (255, 255, 255)
    return np.asarray(cv2.copyMakeBorder(resized, 0, height - inside, 0, 0, cv2.BORDER_CONSTANT, value=white), np.uint8)


def _front_view(output: Points, target: Points | None) -> Image:
    """As the camera sees it, without perspective."""
    return _orthographic(output, target, (0, 1), "front")


def _side_view(output: Points, target: Points | None) -> Image:
    """From the right of the image: what is near the camera is on the left."""
    return _orthographic(output, target, (2, 1), "side")


def _orthographic(output: Points, target: Points | None, axes: tuple[int, int], name: str) -> Image:
    """Both skeletons on a white square, with a bar of 50 mm; the true one is thin and grey."""
    import cv2

    picture = np.full((_SIDE, _SIDE, 3), 255, np.uint8)
    middle = (output if target is None else target).mean(axis=0)
    scale = _SIDE / 2 / _REACH_MM
    for joints, is_true in ((target, True), (output, False)):
        if joints is not None:
            _draw(picture, (joints - middle)[:, axes] * scale + _SIDE / 2, is_true)
    right, bottom = _SIDE - 8, _SIDE - 8
    cv2.line(picture, (right - round(50 * scale), bottom), (right, bottom), (60, 60, 60), 2)
    cv2.putText(
        picture, "50 mm", (right - 42, bottom - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (60, 60, 60), 1, cv2.LINE_AA
    )
    cv2.putText(picture, name, (6, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (60, 60, 60), 1, cv2.LINE_AA)
    return picture


def _draw(picture: Image, points: Points, is_true: bool) -> None:
    """One skeleton: the predicted one thick, in the colours of the fingers, with their initials; the true one grey."""
    import cv2

    places = np.nan_to_num(points).clip(-9999, 9999).round().astype(int).tolist()
    for start, end in _BONES:
        colour = (110, 110, 110) if is_true else _bgr(list(_FINGERS.values())[(end - 1) // 4])
        cv2.line(picture, places[start], places[end], (255, 255, 255), 3 if is_true else 5, cv2.LINE_AA)
        cv2.line(picture, places[start], places[end], colour, 1 if is_true else 3, cv2.LINE_AA)
    if not is_true:
        for finger, tip in zip(_FINGERS, places[4::4], strict=True):
            _write(picture, finger, (tip[0] + 4, tip[1]), 0.4)


def _write(picture: Image, text: str, place: tuple[int, int], scale: float) -> None:
    """Dark text with a white rim, legible on any ground."""
    import cv2

    line = max(1, round(2 * scale))
    for colour, weight in (((255, 255, 255), line + 2 * max(1, line // 2)), ((20, 20, 20), line)):
        cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, weight, cv2.LINE_AA)


def _bgr(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour[1:])
    return blue, green, red
