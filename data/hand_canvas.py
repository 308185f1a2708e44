"""A camera for hands: rays against rounded cones, the skin that they hit, and the light on it."""

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from data.hand_skeleton import Skeleton, Vectors

IMAGE_SIZE = 224
SUPERSAMPLE = 2  # rays a pixel, in each direction

Image = NDArray[np.float32]  # (224, 224) or (224, 224, 3), 0 to 1

# Half the thickness in mm at the joints of each finger, root to tip, and at the carpals.
FINGER_RADII = np.array([
    (13.0, 11.5, 10.0, 7.2),
    (11.0, 8.6, 7.7, 6.2),
    (11.0, 8.8, 7.9, 6.3),
    (10.5, 8.3, 7.4, 6.0),
    (10.0, 7.4, 6.6, 5.4),
])  # fmt: skip


class Part(NamedTuple):
    """One rounded cone in hand coordinates, in mm, with the radii of an average hand; see Cones."""

    first: Vectors
    second: Vectors
    first_radius: float
    second_radius: float
    back: Vectors = np.array([0.0, 0.0, -1.0])
    is_tip: bool = False
    is_sleeve: bool = False


class Cones(NamedTuple):
    """Rounded cones, the hull of two balls each: centres (N, 3) and radii (N,) in mm of both balls.

    backs (N, 3) point out of the back of the hand; is_tip (N,) have a nail; is_sleeve (N,) may be clothed.
    """

    first: Vectors
    second: Vectors
    first_radius: NDArray[np.float64]
    second_radius: NDArray[np.float64]
    backs: Vectors
    is_tip: NDArray[np.bool_]
    is_sleeve: NDArray[np.bool_]

    def seen(self, rotation: NDArray[np.float64], place: Vectors) -> "Cones":
        """The same in the coordinates of a camera: rotation (3, 3), and the place (3,) of the wrist in mm."""
        first, second = (points @ rotation.T + place for points in (self.first, self.second))
        return self._replace(first=first, second=second, backs=self.backs @ rotation.T)


class Surface(NamedTuple):
    """What each pixel of an image sees of a hand, (224, 224, ...).

    coverage: fraction of the pixel. normals (..., 3) and depth (mm): of that fraction. tints (..., 4): fractions that
    are palm, back, nail and sleeve. occlusion: fraction of the light that does not reach it.
    """

    coverage: Image
    normals: Image
    depth: Image
    tints: Image
    occlusion: Image


def hand_cones(skeleton: Skeleton, thickness: float) -> Cones:
    """A hand and its forearm around a skeleton; `thickness` is a fraction of the average."""
    fat = thickness * skeleton.size
    parts = [*_fingers(skeleton, fat), *_palm(skeleton), *_forearm()]
    cones = Cones(*(np.array(column) for column in zip(*parts, strict=True)))
    return cones._replace(first_radius=cones.first_radius * fat, second_radius=cones.second_radius * fat)


def _fingers(skeleton: Skeleton, fat: float) -> Iterator[Part]:
    for finger, radii in enumerate(FINGER_RADII):
        joints = skeleton.joints[1 + 4 * finger : 5 + 4 * finger]
        # The skin ends a little beyond the joint at the tip, so the last ball lies before it.
        along = joints[3] - joints[2]
        ends = [joints[1], joints[2], joints[3] - along / np.linalg.norm(along) * (radii[3] * fat - 2.0)]
        for number, end in enumerate(ends):
            back = skeleton.backs[finger, number + 1]
            yield Part(joints[number], end, radii[number], radii[number + 1], back, is_tip=number == 2)


def _palm(skeleton: Skeleton) -> Iterator[Part]:
    joints, carpals = skeleton.joints, skeleton.carpals
    knuckles = joints[5::4]
    for finger, knuckle in enumerate(knuckles, start=1):
        yield Part(carpals[finger], knuckle, 13.5, FINGER_RADII[finger, 0])
    for i in range(3):  # between the metacarpals
        yield Part((carpals[i + 1] + carpals[i + 2]) / 2, (knuckles[i] + knuckles[i + 1]) / 2, 13.0, 9.0)
        yield Part(knuckles[i], knuckles[i + 1], 10.0, 9.5)
    yield Part(carpals[0], carpals[4], 12.5, 12.5)
    ball, thumb_back = (joints[2] + carpals[0]) / 2, skeleton.backs[0, 0]
    yield Part(carpals[0], ball, 14.0, 15.0, thumb_back)
    yield Part(ball, joints[2], 15.0, 11.5, thumb_back)
    web = (carpals[1] + knuckles[0]) / 2
    yield Part(ball, web, 11.0, 10.0)
    yield Part((ball + joints[2]) / 2, (web + knuckles[0]) / 2, 8.0, 8.0)
    heel = (carpals[4] + knuckles[3]) / 2 + np.array([-2.0, 0.0, 4.0])
    yield Part(carpals[4] + np.array([0.0, -4.0, 3.0]), heel, 13.0, 12.0)


def _forearm() -> Iterator[Part]:
    for side in (-1.0, 0.0, 1.0):  # it is flat
        wrist, cuff, end = (
            np.array(each) for each in ((9.0 * side, 10, 1.5), (11.0 * side, -40, 0), (17.0 * side, -330, 0))
        )
        yield Part(wrist, cuff, 15.0, 16.5)
        yield Part(cuff, end, 16.5, 30.0, is_sleeve=True)


def ray_cast(cones: Cones, focal: float, centre: tuple[float, float]) -> Surface:
    """What a pinhole camera sees of cones in its coordinates; `focal` and `centre` in pixels."""
    side = IMAGE_SIZE * SUPERSAMPLE
    depth = np.full((side, side), np.inf)
    owner = np.full((side, side), -1, np.int16)
    x, y = ((np.arange(side) + 0.5) / SUPERSAMPLE - each for each in centre)
    x, y = x / focal, y / focal
    for number in range(len(cones.first)):
        rows, columns = _bounds(cones, number, x, y)
        if rows.stop <= rows.start or columns.stop <= columns.start:
            continue
        hit = _first_hit(cones, number, x[None, columns], y[rows, None])
        nearer = hit < depth[rows, columns]
        depth[rows, columns][nearer] = hit[nearer]
        owner[rows, columns][nearer] = number
    return _surface(cones, depth, owner, x, y)


def _bounds(cones: Cones, number: int, x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[slice, slice]:
    """The rows and columns that can see a cone: those of the boxes around its two balls."""
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for point, radius in (
        (cones.first[number], cones.first_radius[number]),
        (cones.second[number], cones.second_radius[number]),
    ):
        near = max(point[2] - radius, 1.0)
        low = np.minimum(low, np.minimum((point[:2] - radius) / near, (point[:2] - radius) / (point[2] + radius)))
        high = np.maximum(high, np.maximum((point[:2] + radius) / near, (point[:2] + radius) / (point[2] + radius)))
    columns, rows = (np.searchsorted(grid, (low[i], high[i])) for i, grid in enumerate((x, y)))
    return slice(int(rows[0]), int(rows[1])), slice(int(columns[0]), int(columns[1]))


def _first_hit(cones: Cones, number: int, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Depth in mm at which the rays (x, y, 1) meet a rounded cone; infinity where they miss.

    The cone is the hull of all balls on its axis. A point p lies on the one at fraction t where f(p, t) = 0, and on
    the hull where f does not change with t either; outside 0 <= t <= 1 the balls at the ends are what is seen.
    """
    a, b = cones.first[number], cones.second[number]
    r, grows = cones.first_radius[number], cones.second_radius[number] - cones.first_radius[number]
    axis = b - a
    square = x * x + y * y + 1.0
    along_a, along_axis = x * a[0] + y * a[1] + a[2], x * axis[0] + y * axis[1] + axis[2]
    length, offset = axis @ axis - grows * grows, r * grows - a @ axis
    k2 = length * square - along_axis * along_axis
    k1 = length * along_a + along_axis * offset
    k0 = length * (a @ a - r * r) - offset * offset
    with np.errstate(invalid="ignore", divide="ignore"):
        body = (k1 - np.sqrt(k1 * k1 - k2 * k0)) / k2
        fraction = (body * along_axis + offset) / length
        hit = np.where((fraction >= 0) & (fraction <= 1), body, np.inf)
        for centre, radius in ((a, r), (b, r + grows)):
            along = x * centre[0] + y * centre[1] + centre[2]
            ball = (along - np.sqrt(along * along - square * (centre @ centre - radius * radius))) / square
            hit = np.fmin(hit, ball)
    return hit


def _surface(
    cones: Cones, depth: NDArray[np.float64], owner: NDArray[np.int16], x: NDArray[np.float64], y: NDArray[np.float64]
) -> Surface:
    rows, columns = np.nonzero(owner >= 0)
    own, z = owner[rows, columns], depth[rows, columns]
    points = np.stack([x[columns] * z, y[rows] * z, z], axis=1)
    a, axis = cones.first[own], (cones.second - cones.first)[own]
    grows = (cones.second_radius - cones.first_radius)[own]
    length = (axis * axis).sum(axis=1)
    from_a = points - a
    along = ((from_a * axis).sum(axis=1) + cones.first_radius[own] * grows) / (length - grows * grows)
    along = np.clip(along, 0.0, 1.0)
    radius = cones.first_radius[own] + along * grows
    normals = (from_a - along[:, None] * axis) / radius[:, None]
    facing = (normals * cones.backs[own]).sum(axis=1)
    back = np.clip(0.5 + 1.4 * facing, 0.0, 1.0)
    # A nail covers the last half of a fingertip's back.
    nail = cones.is_tip[own] * np.clip(6.0 * (facing - 0.72), 0.0, 1.0) * np.clip(6.0 * (along - 0.42), 0.0, 1.0)
    sleeve = cones.is_sleeve[own].astype(np.float64)
    features = np.zeros((9, *depth.shape), np.float32)
    features[0, rows, columns] = 1.0
    features[1:4, rows, columns] = normals.T
    features[4, rows, columns] = z
    features[5:8, rows, columns] = np.stack([(1 - back) * (1 - nail), back * (1 - nail), nail]) * (1 - sleeve)
    features[8, rows, columns] = sleeve
    return _shrunk(features)


def _shrunk(features: NDArray[np.float32]) -> Surface:
    """Means over the rays of each pixel; the skin bridges the seams between cones, so their normals are blurred."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    planes = [cv2.resize(np.ascontiguousarray(each), size, interpolation=cv2.INTER_AREA) for each in features]
    coverage: Image = np.asarray(planes[0], np.float32)
    share = 1 / np.maximum(coverage, np.float32(1e-3))
    normals: Image = np.asarray(cv2.GaussianBlur(np.dstack(planes[1:4]), (0, 0), 2.0), np.float32)
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), np.float32(1e-3))
    depth: Image = np.asarray(planes[4] * share, np.float32)
    tints: Image = np.asarray(np.dstack(planes[5:]) * share[..., None], np.float32)
    return Surface(coverage, normals, depth, tints, _occlusion(depth, coverage))


def _occlusion(depth: Image, coverage: Image) -> Image:
    """0 to 1: how much lower a place lies than what is around it (after Luft et al., SIGGRAPH 2006)."""
    result = np.zeros_like(depth)
    for sigma, strength in ((2.5, 0.05), (8.0, 0.03)):
        weight = np.maximum(cv2.GaussianBlur(coverage, (0, 0), sigma), 1e-3)
        around = cv2.GaussianBlur(depth * coverage, (0, 0), sigma) / weight
        result += np.asarray(strength * np.clip(depth - around, 0.0, 8.0), np.float32)
    return np.clip(result, 0.0, 1.0)
