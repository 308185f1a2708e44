"""Faces in larger images: found by OpenCV's cascade, cropped as those of FER2013 are."""

import functools
from pathlib import Path
from typing import Any

from utils.utils_error import UserError
from views.view_base import Box, Image
from views.view_classification import ClassificationView

# FER2013's faces were cropped by such a detector: its boxes are 0.97 times as wide as FER2013's own 48x48 faces,
# and 0.86 times as wide as the generated ones. A model of the latter names 95.6 % of those that are found right at a
# factor of 1, 97 % at 1.05 to 1.2, and 95.5 % at 1.3.
_WIDTH = 1.08  # of what the network sees, in widths of the cascade's box
_SEARCHED_SIDE = 960  # pixels; a larger image is searched in a smaller copy
_SMALLEST_FACE = 24  # pixels of the searched copy; the cascade knows no smaller one


class FaceView(ClassificationView):
    """Logits (B, K) of face crops."""

    subject = "face"

    def find(self, image: Image) -> list[Box]:
        """Frontal faces from left to right, with the cascade of Lienhart et al. (2003), "alt2".

        Faces narrower than 24 pixels, or than 1/40 of an image of more than 960 pixels, are not found.
        """
        import cv2

        scale = min(1.0, _SEARCHED_SIDE / max(image.shape[:2]))
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        if scale < 1:
            size = [max(1, round(side * scale)) for side in (grey.shape[1], grey.shape[0])]
            grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
        found = self._cascade.detectMultiScale(
            cv2.equalizeHist(grey), scaleFactor=1.1, minNeighbors=3, minSize=(_SMALLEST_FACE, _SMALLEST_FACE)
        )
        return sorted((_grown(*(side / scale for side in box)) for box in found), key=lambda box: (box.left, box.top))

    @functools.cached_property
    def _cascade(self) -> Any:
        import cv2

        folder = getattr(getattr(cv2, "data", None), "haarcascades", "")
        path = Path(folder) / "haarcascade_frontalface_alt2.xml"
        if not folder or not path.is_file():
            raise UserError(
                f"infer: OpenCV {cv2.__version__} comes without its face cascades; pip install "
                "'opencv-python-headless<5', or give crops of faces with --no_detect"
            )
        return cv2.CascadeClassifier(str(path))


def _grown(left: float, top: float, width: float, height: float) -> Box:
    dx, dy = width * (_WIDTH - 1) / 2, height * (_WIDTH - 1) / 2
    return Box(round(left - dx), round(top - dy), round(width + 2 * dx), round(height + 2 * dy))
