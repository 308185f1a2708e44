"""A window that shows pictures, where this OpenCV and this machine have one."""

import os
import sys

import cv2

from utils.utils_error import UserError
from views.view_base import Image

_NAME = "Longhaul: q ends"
_SIDE = 1280  # pixels; what is larger is shown smaller
_END_KEYS = (ord("q"), 27)  # 27: Escape


class Window:
    """Raises UserError where no window can be opened. Annotated files are written with and without one."""

    def __init__(self) -> None:
        try:
            cv2.destroyAllWindows()  # needs no display, and fails in a build without windows
        except cv2.error as error:
            raise UserError(
                "--show: this OpenCV has no windows (opencv-python-headless); pip uninstall opencv-python-headless && "
                "pip install 'opencv-python<5', or leave --show out: annotated files need no window"
            ) from error
        if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            # Qt would end the process
            raise UserError("--show: there is no display; leave --show out: annotated files need no window")
        cv2.namedWindow(_NAME, cv2.WINDOW_AUTOSIZE)

    def show(self, picture: Image, wait: bool) -> bool:
        """Show a picture, and wait for a key if asked to; False once q or Escape is pressed or the window closed."""
        scale = min(1.0, _SIDE / max(picture.shape[:2]))
        size = [max(1, round(side * scale)) for side in (picture.shape[1], picture.shape[0])]
        cv2.imshow(_NAME, cv2.resize(picture, size, interpolation=cv2.INTER_AREA) if scale < 1 else picture)
        while True:
            key = cv2.waitKey(30 if wait else 1)
            if key & 0xFF in _END_KEYS or cv2.getWindowProperty(_NAME, cv2.WND_PROP_VISIBLE) < 1:
                return False
            if key >= 0 or not wait:
                return True

    def close(self) -> None:
        cv2.destroyAllWindows()
