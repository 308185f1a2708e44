"""VIEWS: what is shown of a task, by the name that its data set gives as `view`."""

import functools
from collections.abc import Sequence
from typing import Any

from utils.utils_error import UserError
from utils.utils_table import Table
from views.view_base import View
from views.view_classification import ClassificationView
from views.view_faces import FaceView
from views.view_hand_pose import HandPoseView

VIEWS = Table(
    "view",
    {
        "classification": ClassificationView,
        "faces": FaceView,
        "hand_pose": HandPoseView,
        "plain": View,
    },
)


def define_view(dataset: Any, class_names: Sequence[str]) -> View:
    """The view of a data set (or of its class): the one that it names, else that of classes if it has any.

    Raises UserError for a name that is not in VIEWS.
    """
    name = stated(dataset, "view") or ("classification" if class_names else "plain")
    dataset_class = dataset if isinstance(dataset, type) else type(dataset)
    if unknown := VIEWS.unknown(f"{dataset_class.__name__}.view", name):
        raise UserError(unknown)
    view: View = VIEWS[name](class_names, stated(dataset, "joint_names") or ())
    return view


def stated(dataset: Any, attribute: str) -> Any:
    """What a data set, or its class, says for itself; None where it does not, or only an open one knows."""
    found = getattr(dataset, attribute, None)
    return None if isinstance(found, property | functools.cached_property) else found
