"""VIEWS: what is shown of a task, by the name that its data set gives as `view`."""

from collections.abc import Sequence
from typing import Any

from views.view_base import View
from views.view_classification import ClassificationView
from views.view_faces import FaceView
from views.view_hand_pose import HandPoseView

VIEWS: dict[str, type[View]] = {
    "classification": ClassificationView,
    "faces": FaceView,
    "hand_pose": HandPoseView,
    "plain": View,
}


def define_view(dataset: Any, class_names: Sequence[str]) -> View:
    """The view of a data set (or of its class): the one that it names, else that of classes if it has any."""
    name = getattr(dataset, "view", "classification" if class_names else "plain")
    return VIEWS[name](class_names, getattr(dataset, "joint_names", ()))
