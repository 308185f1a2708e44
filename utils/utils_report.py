"""From figures, pictures and facts to one HTML page that needs no other file."""

import base64
import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from utils.utils_visualise import ACCENT, GRID, INK, LINES, MUTED

if TYPE_CHECKING:
    from utils.utils_visualise import Figure

_TEMPLATES = Path(__file__).parent / "templates"

# The page changes its colours with the reader's light or dark setting, and the figures with it.
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", ACCENT: "--line-1"} | {
    colour: f"--line-{number}" for number, colour in enumerate(LINES, 1)
}
_NAMELESS = re.compile(r' id="[^"]*_\d+"')  # matplotlib numbers its groups anew in each figure; nothing refers to them


def render_page(template: str, facts: Mapping[str, Any]) -> str:
    """Fill a template of utils/templates/; whatever is not marked as HTML is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(facts)


def inline_svg(figure: "Figure", label: str) -> Any:
    """The figure as an <svg> element in the colours of the page; `label` is what a screen reader says."""
    import matplotlib
    from markupsafe import Markup, escape

    text = io.StringIO()
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "longhaul", "font.family": "sans-serif"}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's browser has more fonts
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = _NAMELESS.sub("", svg[svg.index("<svg") :])
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1))


def picture_uri(picture: NDArray[np.uint8]) -> str:
    """A PNG as a data: address. picture: uint8 (C, H, W), grey or RGB."""
    import cv2

    pixels = np.moveaxis(picture, 0, -1)
    is_written, content = cv2.imencode(".png", pixels[..., ::-1] if pixels.shape[-1] == 3 else pixels)
    assert is_written, "a PNG of uint8 can always be encoded"
    return f"data:image/png;base64,{base64.b64encode(content.tobytes()).decode()}"


def heat_picture(picture: NDArray[np.uint8], heat: NDArray[np.float32], side: int = 192) -> NDArray[np.uint8]:
    """The picture, at least `side` pixels wide, under a heat map; a line bounds its hottest tenth, or less.

    picture: uint8 (C, H, W). heat: (H, W). Returns uint8 (3, H', W'), RGB. Only what is positive is shown, and bounded.
    """
    import cv2

    height, width = heat.shape
    scale = max(1, -(-side // width))
    size = width * scale, height * scale
    ground = cv2.resize(np.moveaxis(picture, 0, -1), size, interpolation=cv2.INTER_CUBIC)
    if ground.ndim == 2:
        ground = cv2.cvtColor(ground, cv2.COLOR_GRAY2RGB)
    smooth = cv2.resize(np.maximum(heat, 0), size, interpolation=cv2.INTER_CUBIC)
    share = np.clip(smooth / max(float(smooth.max()), 1e-6), 0, 1)
    colours = cv2.applyColorMap((share * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    weight = 0.55 * share[..., None]
    shown = np.ascontiguousarray((ground * (1 - weight) + colours * weight).astype(np.uint8))
    if share.max() > 0:
        hottest = ((share >= np.quantile(share, 0.9)) & (share > 0)).astype(np.uint8)
        outline, _ = cv2.findContours(hottest, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(shown, outline, -1, (255, 255, 255), 2)
        cv2.drawContours(shown, outline, -1, (20, 20, 20), 1)
    return np.moveaxis(shown, -1, 0)
