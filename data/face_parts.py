"""The parts of a face as shapes: who it is, how far which muscles pull, and what that looks like.

Face coordinates as in face_canvas: x to the right, y down, the origin between eyes and nose, the head 2 high.
"""

from typing import NamedTuple

import numpy as np

from data.face_canvas import UNIT_CIRCLE, Sketch, curve, ellipse, loop

BALD = 0.07  # below this volume there is no hair
SPAN = np.linspace(-1.0, 1.0, 17)  # along a lid, a lip or a fold
ARCH = 1.0 - SPAN**2
BROW_T = np.linspace(0.0, 1.0, 11)  # from the inner end to the outer one
BROW_BASIS = np.stack([2 * (BROW_T - 0.5) * (BROW_T - 1), 4 * BROW_T * (1 - BROW_T), 2 * BROW_T * (BROW_T - 0.5)], 1)
BROW_TAPER = 0.35 + 0.65 * np.minimum(1.0, 1.5 * (1.0 - BROW_T)) * np.minimum(1.0, 0.6 + 3 * BROW_T)


class Expression(NamedTuple):
    """How far the muscles pull: lengths in face units, upwards positive, and fractions. Nothing pulls when neutral."""

    brow_inner: float = 0.0
    brow_middle: float = 0.0
    brow_outer: float = 0.0
    brow_together: float = 0.0
    lid_upper: float = 0.0  # added to the upper lid's height, as a fraction of it
    lid_lower: float = 0.0  # taken from the lower lid's depth, as a fraction of it; above 1 the lid bulges upwards
    lid_slant: float = 0.0  # how low the outer corner hangs
    corner: float = 0.0  # of the mouth
    stretch: float = 0.0  # added to half the mouth's width
    gape: float = 0.0  # between the lips
    square: float = 0.0  # fraction: 0 opens like a lens, 1 like a box
    upper_lip: float = 0.0
    sneer: float = 0.0  # the upper lip on one side: above 0 on the right, below on the left
    press: float = 0.0  # fraction of the lips rolled in
    teeth: float = 0.0  # fraction of the opening
    jaw: float = 0.0  # how low it drops
    cheek: float = 0.0  # fraction: folds beside the nose, bags below the eyes
    frown: float = 0.0  # fraction: upright lines between the brows
    nose_wrinkle: float = 0.0  # fraction
    forehead: float = 0.0  # fraction: lines across it


class Look(NamedTuple):
    """Who it is and where: what stays while the expression changes. Lengths in face units, tones as grey values."""

    head_width: float  # half of it
    jaw_taper: float  # fraction
    eye_distance: float  # half of it
    eye_width: float  # half of it
    eye_height: float
    eye_y: float
    brow_gap: float
    brow_arch: float
    brow_thickness: float
    nose_width: float  # half of it
    nose_y: float
    mouth_y: float
    mouth_width: float  # half of it
    lip_thickness: float
    skin: float
    hair: float  # fraction of the skin's tone
    lips: float  # fraction of the skin's tone
    iris: float
    age: float  # fraction: folds that stay
    gaze: float  # -1 left, 1 right
    hairline: float
    parting: float  # -1 left, 1 right
    hair_volume: float
    hair_length: float
    beard: float  # fraction of a full one; below 0 none
    glasses: bool
    background: float
    wall: float
    wall_edge: float
    clothes: float


def blend(first: float, second: float, fraction: float) -> float:
    """From `first` (fraction 0) to `second` (fraction 1)."""
    return first + (second - first) * min(1.0, max(0.0, fraction))


def draw_head(sketch: Sketch, look: Look, face: Expression) -> None:
    """Wall, hair behind, clothes, neck, ears, head, beard."""
    hair, width = look.skin * look.hair, look.head_width
    sketch.fill(np.array([(look.wall_edge, -3), (4, -3), (4, 3), (look.wall_edge, 3)]), look.wall)
    if look.hair_length > 0.2 and look.hair_volume > BALD:
        sketch.fill(ellipse(0.0, 0.1, width + 0.1 + look.hair_volume, 0.75 + look.hair_length * 0.5), hair * 0.8)
    sketch.fill(ellipse(0.0, 2.0, 1.5, 0.85), look.clothes)
    sketch.fill(np.array([(-0.42, 0.4), (0.42, 0.4), (0.5, 1.5), (-0.5, 1.5)]), look.skin * 0.72)
    if look.hair_volume > BALD:
        sketch.fill(ellipse(0.0, -0.2, width + look.hair_volume * 0.5, 0.86 + look.hair_volume), hair)
    for side in (-1, 1):
        sketch.fill(ellipse(side * (width + 0.02), 0.0, 0.09, 0.2), look.skin * 0.86)
    down = np.clip(UNIT_CIRCLE[:, 1], 0.0, None) ** 2
    outline = UNIT_CIRCLE * curve(width * (1.0 - look.jaw_taper * down), 1.0) + curve(0.0, face.jaw * down)
    sketch.fill(outline, look.skin)
    sketch.shade(ellipse(0.0, -0.5, 0.4, 0.16), 1.06)
    if look.beard > 0.0:
        tone = blend(look.skin, 0.25 * look.skin + 0.7 * hair, look.beard)
        cheeks = curve(-0.66 * SPAN, look.mouth_y + 0.16 - 0.5 * SPAN**2 + face.gape * 0.7 * ARCH)
        sketch.fill(loop(outline[1:20], cheeks), tone)
        lip = look.mouth_y - 0.02 - face.upper_lip
        sketch.fill(loop(curve(0.3 * SPAN, lip - 0.14 * ARCH), curve(0.36 * SPAN, lip + 0.1 - face.corner * 0.5)), tone)


def draw_hair(sketch: Sketch, look: Look) -> None:
    """The hair in front: a cap down to the hairline with its parting and strands; none where it has no volume."""
    if look.hair_volume <= BALD:
        sketch.shade(ellipse(-0.15, -0.72, 0.25, 0.12), 1.15)
        return
    crown = curve(look.head_width * 1.06 * SPAN, -0.25 - (0.78 + look.hair_volume) * np.sqrt(ARCH))
    dip = 0.22 * np.exp(-(((SPAN - look.parting) / 0.35) ** 2))
    rim = look.hairline + 0.45 * np.abs(SPAN) ** 5 - dip + 0.08 * SPAN * look.parting
    sketch.fill(loop(crown, curve(look.head_width * 1.02 * SPAN, rim)), look.skin * look.hair)
    for strand in range(1, 16, 2):
        root = (look.parting * 0.4, -0.98 - look.hair_volume)
        tip = (look.head_width * SPAN[strand] * 0.98, rim[strand] - 0.04)
        bend = (root[0] * 0.4 + tip[0] * 0.6, root[1] * 0.65 + tip[1] * 0.35)
        sketch.shade(np.array([root, bend, tip]), 0.72 if strand % 4 == 1 else 1.35, 0.045)


def draw_eye(sketch: Sketch, look: Look, face: Expression, side: int) -> None:
    """White, iris, lids, folds and bags of one eye; side -1 or 1."""
    x, turn = look.eye_distance + look.eye_width * SPAN, np.array([side, 1.0])
    middle = look.eye_y + face.lid_slant * SPAN
    upper = middle - look.eye_height * max(0.12, 1.0 + face.lid_upper) * ARCH**0.8
    lower = np.maximum(upper + 0.012, middle + look.eye_height * 0.6 * (1.0 - face.lid_lower) * ARCH)
    sketch.shade(ellipse(side * look.eye_distance, look.eye_y - 0.03, 0.21, 0.14), 0.88)
    sketch.shade(ellipse(side * 0.14, look.eye_y - 0.04, 0.06, 0.1), 0.8)
    sketch.fill(loop(curve(x, upper), curve(x, lower)) * turn, min(240.0, look.skin * 0.45 + 140))
    for radius, tone in ((0.095, look.iris), (0.045, 12.0)):
        iris = ellipse(look.eye_distance + side * look.gaze * 0.06, look.eye_y - 0.02, radius, radius)
        iris[:, 1] = np.clip(iris[:, 1], np.interp(iris[:, 0], x, upper), np.interp(iris[:, 0], x, lower))
        sketch.fill(iris * turn, tone)
    sketch.line(curve(x, upper) * turn, look.skin * 0.22, 0.035)
    sketch.line(curve(x, lower) * turn, look.skin * 0.6, 0.02)
    sketch.shade(curve(x, upper - 0.05) * turn, 0.8, 0.03)
    bag = curve(x, look.eye_y + 0.13 - 0.05 * face.cheek + 0.05 * ARCH) * turn
    sketch.shade(bag, blend(1.0, 0.8, 0.4 * look.age + face.cheek), 0.035)


def draw_brow(sketch: Sketch, look: Look, face: Expression, side: int) -> None:
    """One brow, a tapered band through its inner end, middle and outer end, and the frown line beside it."""
    base = look.eye_y - look.brow_gap
    x = BROW_BASIS @ np.array([0.13 - face.brow_together, look.eye_distance, look.eye_distance + 0.24])
    y = base - BROW_BASIS @ np.array([face.brow_inner, face.brow_middle + look.brow_arch, face.brow_outer - 0.02])
    half = 0.5 * look.brow_thickness * BROW_TAPER
    tone = look.skin * min(0.62, 0.1 + 0.6 * look.hair)
    sketch.fill(loop(curve(x, y - half), curve(x, y + half)) * (side, 1.0), tone)
    if face.frown > 0.1:
        fold = np.array([(0.055, base - 0.08), (0.045, base + 0.02), (0.06, base + 0.1)])
        sketch.line(fold * (side, 1.0), look.skin * blend(1.0, 0.6, face.frown), 0.025)


def draw_nose(sketch: Sketch, look: Look, face: Expression) -> None:
    """Bridge, tip, wings and nostrils; the wrinkles of disgust across the bridge."""
    wrinkle = max(0.0, face.nose_wrinkle)
    width, tip = look.nose_width * (1.0 + 0.15 * wrinkle), look.nose_y - 0.04 * wrinkle
    for side in (-1, 1):
        ridge = np.array([(0.075, look.eye_y), (0.07, tip - 0.15), (width, tip - 0.02), (width * 0.8, tip + 0.05)])
        sketch.shade(ridge * (side, 1.0), 0.84, 0.05, lift=0.05)
        sketch.line(curve(side * (width - 0.02 + 0.02 * ARCH), tip + 0.07 * SPAN), look.skin * 0.68, 0.02, lift=0.08)
        sketch.fill(ellipse(side * width * 0.5, tip + 0.05, 0.04, 0.022), look.skin * 0.35, lift=0.12)
        for row in range(3 if wrinkle > 0.1 else 0):
            y = look.eye_y + 0.04 + 0.07 * row
            crease = np.array([(side * 0.02, y), (side * (0.09 + 0.02 * row), y - 0.06 + 0.02 * row)])
            sketch.line(crease, look.skin * blend(1.0, 0.6, wrinkle), 0.022, lift=0.08)
    sketch.shade(curve(0.0, np.array([look.eye_y, tip - 0.05])), 1.12, 0.06, lift=0.1)
    sketch.shade(ellipse(0.0, tip - 0.02, 0.06, 0.05), 1.14, lift=0.16)
    sketch.shade(curve(width * 0.8 * SPAN, tip + 0.09), 0.8, 0.04, lift=0.05)


def draw_folds(sketch: Sketch, look: Look, face: Expression) -> None:
    """The folds from nose to mouth, raised cheeks, lines across the forehead, the shadow under the lip."""
    cheek, way = max(0.0, face.cheek), (SPAN + 1.0) / 2.0
    for side in (-1, 1):
        fold_x = 0.2 + (look.mouth_width + face.stretch - 0.1) * way + 0.03 * ARCH
        fold_y = look.nose_y - 0.03 + (look.mouth_y - look.nose_y - face.corner) * way
        sketch.shade(curve(side * fold_x, fold_y), 1.0 - min(0.45, 0.3 * look.age + 0.4 * cheek), 0.05)
        sketch.shade(ellipse(side * 0.4, 0.16 - 0.05 * cheek, 0.15, 0.1), 1.05 + 0.12 * cheek)
    for row in range(3 if face.forehead > 0.1 else 0):
        sketch.shade(curve(0.36 * SPAN, -0.52 - 0.09 * row - 0.03 * ARCH), blend(1.0, 0.7, face.forehead), 0.03)
    bottom = look.mouth_y + max(0.0, face.gape) * 0.75 + look.lip_thickness
    sketch.shade(curve(0.18 * SPAN, bottom + 0.06), 0.8, 0.05)
    sketch.shade(ellipse(0.0, 0.87 + face.jaw, 0.14, 0.06), 1.08)


def draw_mouth(sketch: Sketch, look: Look, face: Expression) -> None:
    """Lips, and where they part the dark, the tongue and the teeth."""
    gape, x = max(0.0, face.gape), (look.mouth_width + face.stretch) * SPAN
    shape = ARCH ** blend(0.9, 0.35, face.square)
    base = look.mouth_y + face.corner * (0.35 - SPAN**2)
    sneer = abs(face.sneer) * np.exp(-(((SPAN - np.copysign(0.45, face.sneer)) / 0.4) ** 2)) * ARCH
    upper = base - (0.25 * gape + face.upper_lip) * shape - sneer
    lower = np.maximum(upper, base + (0.75 * gape - 0.2 * face.upper_lip) * shape)
    lip = look.lip_thickness * (1.0 - face.press) * ARCH**0.6
    bow = 1.0 - 0.35 * np.exp(-((SPAN / 0.15) ** 2))
    tone = look.skin * look.lips
    sketch.fill(loop(curve(x, upper - 0.8 * lip * bow), curve(x, lower)), tone * 0.85, lift=0.03)
    sketch.fill(loop(curve(x, upper), curve(x, lower + 1.1 * lip)), tone, lift=0.03)
    if gape > 0.02:
        sketch.fill(loop(curve(x, upper), curve(x, lower)), 18.0)
        tongue = np.maximum(upper, lower - 0.32 * gape * ARCH)
        sketch.fill(loop(curve(x * 0.7, tongue), curve(x * 0.7, lower)), look.skin * 0.38)
        bite = upper + (lower - upper) * min(1.0, max(0.0, face.teeth))
        sketch.fill(loop(curve(x * 0.9, upper), curve(x * 0.9, bite)), min(235.0, 120 + look.skin * 0.5))
    sketch.line(curve(x, upper), look.skin * 0.3, 0.022, lift=0.01)
    sketch.shade(curve(x * 0.5, lower + 0.8 * lip), 1.12, 0.03, lift=0.03)


def draw_glasses(sketch: Sketch, look: Look) -> None:
    """A thin frame."""
    tone = look.skin * 0.25
    for side in (-1, 1):
        rim = ellipse(side * look.eye_distance, look.eye_y + 0.03, 0.24, 0.18)
        sketch.line(np.concatenate([rim, rim[:1]]), tone, 0.03, lift=0.05)
        sketch.line(np.array([(side * 0.56, look.eye_y), (side * 0.76, look.eye_y - 0.05)]), tone, 0.03)
    sketch.line(curve(0.1 * SPAN, look.eye_y - 0.03 * ARCH), tone, 0.03, lift=0.1)


def sketch_face(look: Look, face: Expression) -> Sketch:
    """The whole face, back to front."""
    sketch = Sketch()
    draw_head(sketch, look, face)
    draw_nose(sketch, look, face)
    for side in (-1, 1):
        draw_eye(sketch, look, face, side)
        draw_brow(sketch, look, face, side)
    draw_folds(sketch, look, face)
    draw_mouth(sketch, look, face)
    draw_hair(sketch, look)
    if look.glasses:
        draw_glasses(sketch, look)
    return sketch
