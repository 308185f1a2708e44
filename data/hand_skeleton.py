"""The skeleton of a right hand: bone lengths, how far its joints bend, and where that puts the 21 joints.

Hand coordinates in mm: x towards the thumb, y towards the fingertips, z out of the palm; the origin is the wrist.
"""

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float64]  # (..., 3)

# Metacarpal, proximal, middle and distal bone, and the soft tip, in mm: Buryanov and Kotiuk, "Proportions of Hand
# Segments", Int. J. Morphol. 2010. The thumb has no middle bone.
BONES = np.array([
    (46.2, 31.6, 0.0, 21.7, 5.7),
    (68.1, 39.8, 22.4, 15.8, 3.8),
    (64.6, 44.6, 26.3, 17.4, 4.0),
    (58.0, 41.4, 25.7, 17.3, 4.0),
    (53.7, 32.7, 18.1, 16.0, 3.7),
])  # fmt: skip
SIZE_DEVIATION = 0.07  # of the whole hand, as a fraction
BONE_DEVIATION = 0.03  # of each bone on top of it
# Where the metacarpals begin, in mm, and the way they point, as angles in radians: towards the thumb, and out of the
# palm, which is hollow.
CARPALS = np.array([(17.0, 17.0, 7.0), (11.0, 28.0, 0.0), (1.0, 29.0, -1.5), (-8.0, 27.5, 0.0), (-15.0, 24.5, 3.0)])
SPREAD = np.radians([0.0, 11.0, 1.0, -8.0, -17.0])
HOLLOW = np.radians([0.0, 0.0, -1.0, 1.0, 4.0])
# How far joints bend, in radians: range of active motion (American Academy of Orthopaedic Surgeons, 1965).
MCP_FLEXION = np.radians([-20.0, 90.0])
PIP_FLEXION = np.radians([0.0, 100.0])
DIP_PER_PIP = 2 / 3  # the two joints share a tendon
ABDUCTION = np.radians([(-4.0, 12.0), (-6.0, 6.0), (-9.0, 5.0), (-18.0, 5.0)])  # towards the thumb; straight fingers
THUMB_LOW, THUMB_HIGH = np.radians([(0.0, 10.0, -5.0, -10.0), (60.0, 50.0, 50.0, 70.0)])


class Pose(NamedTuple):
    """Joint angles in radians. `fingers` (4, 3): abduction towards the thumb, flexion of MCP and of PIP.

    `thumb` (4,): how far the metacarpal turns out of the palm's plane and stands off the index, flexion of MCP and IP.
    """

    fingers: NDArray[np.float64]
    thumb: NDArray[np.float64]


class Skeleton(NamedTuple):
    """joints (21, 3) in FreiHAND's order, carpals (5, 3); backs (5, 4, 3): unit vectors out of each bone's back."""

    joints: Vectors
    carpals: Vectors
    backs: Vectors
    size: float  # of the hand, as a fraction of an average one


def draw_pose(rng: np.random.Generator) -> Pose:
    """A pose within the limits: fingers mostly curl alike, sometimes each on its own."""
    common = rng.beta(0.7, 0.9)
    alike = rng.choice([0.1, 0.25, 1.0], p=[0.35, 0.4, 0.25])  # how far fingers stray from it
    curl = np.clip(common + alike * rng.uniform(-1.0, 1.0, 4), 0.0, 1.0)
    stretch = np.clip(curl[:, None] + rng.normal(0.0, 0.12, (4, 2)), 0.0, 1.0)
    mcp = MCP_FLEXION[0] + np.ptp(MCP_FLEXION) * stretch[:, 0]
    pip = PIP_FLEXION[0] + np.ptp(PIP_FLEXION) * stretch[:, 1]
    spread = np.clip(rng.beta(1.5, 1.5) + rng.normal(0.0, 0.15, 4), 0.0, 1.0)
    towards_thumb = np.array([spread[0], spread[1], 1.0 - spread[2], 1.0 - spread[3]])
    abduction = ABDUCTION[:, 0] + np.ptp(ABDUCTION, axis=1) * towards_thumb
    abduction *= np.cos(np.clip(mcp, 0.0, None))  # a bent finger cannot be spread
    thumb = THUMB_LOW + (THUMB_HIGH - THUMB_LOW) * rng.beta(1.2, 1.2, 4)
    return Pose(np.stack([abduction, mcp, pip], axis=1), thumb)


def draw_skeleton(rng: np.random.Generator) -> Skeleton:
    """Somebody's hand in some pose, without fingers that pass through each other."""
    size = 1.0 + SIZE_DEVIATION * float(np.clip(rng.standard_normal(), -2, 2))
    bones = BONES * size * (1.0 + BONE_DEVIATION * np.clip(rng.standard_normal(BONES.shape), -2, 2))
    while True:
        skeleton = pose_skeleton(draw_pose(rng), bones, size)
        if not _collides(skeleton):
            return skeleton


def pose_skeleton(pose: Pose, bones: NDArray[np.float64] = BONES, size: float = 1.0) -> Skeleton:
    """The joints of a hand with these bones (5, 5) in mm, in this pose."""
    joints, backs = np.zeros((21, 3)), np.zeros((5, 4, 3))
    carpals = CARPALS * size
    joints[1:5], backs[0] = _thumb(pose.thumb, bones[0], carpals[0])
    for finger in range(1, 5):
        abduction, mcp, pip = pose.fingers[finger - 1]
        frame = turn_z(-SPREAD[finger]) @ turn_x(HOLLOW[finger])
        place = carpals[finger] + frame[:, 1] * bones[finger, 0]
        # Fingers fan out less than the metacarpals, and the knuckles' arch rolls them so that bent ones converge.
        frame = frame @ turn_y(0.35 * SPREAD[finger]) @ turn_z(0.6 * SPREAD[finger] - abduction)
        joints[1 + 4 * finger], backs[finger, 0] = place, -frame[:, 2]
        lengths = (bones[finger, 1], bones[finger, 2], bones[finger, 3] + bones[finger, 4])
        for number, (bend, length) in enumerate(zip((mcp, pip, DIP_PER_PIP * pip), lengths, strict=True), start=1):
            frame = frame @ turn_x(bend)
            place = place + frame[:, 1] * length
            joints[1 + 4 * finger + number], backs[finger, number] = place, -frame[:, 2]
    return Skeleton(joints, carpals, backs, size)


def _thumb(angles: NDArray[np.float64], bones: NDArray[np.float64], carpal: Vectors) -> tuple[Vectors, Vectors]:
    """Joints (4, 3) and backs (4, 3) of the thumb, which bends across the palm."""
    out_of_plane, off_index, mcp, ip = angles
    # Straight along the fingers, its back is turned towards x; then it stands off the index and swings out of the palm.
    frame = turn_y(-out_of_plane) @ turn_z(-off_index) @ turn_x(0.3) @ turn_y(-np.radians(70.0) - 0.3 * out_of_plane)
    joints, backs = [carpal], []
    for bend, length in ((0.0, bones[0]), (mcp, bones[1]), (ip, bones[3] + bones[4])):
        frame = frame @ turn_x(bend)
        joints.append(joints[-1] + frame[:, 1] * length)
        backs.append(-frame[:, 2])
    return np.array(joints), np.array([backs[0], *backs])


def _collides(skeleton: Skeleton) -> bool:
    """Whether two fingers, or a finger and the palm, run through each other."""
    along = np.linspace(0.1, 1.0, 7)[:, None]
    fingers = []
    for finger in range(5):
        first = 2 if finger == 0 else 1  # the thumb's metacarpal is part of the palm
        joints = skeleton.joints[first + 4 * finger : 5 + 4 * finger]
        fingers.append(np.concatenate([a + along * (b - a) for a, b in itertools.pairwise(joints)]))
    palm = np.concatenate(
        [a + along * (b - a) for a, b in zip(skeleton.carpals[1:], skeleton.joints[5::4], strict=True)]
    )
    for finger, points in enumerate(fingers):
        # A finger's own root is in the palm.
        if _nearest(points[4:] if finger == 0 else points[10:], palm) < 15.0 * skeleton.size:
            return True
        if any(_nearest(points, other) < 12.5 * skeleton.size for other in fingers[:finger]):
            return True
    return False


def _nearest(first: Vectors, second: Vectors) -> float:
    """The smallest distance between two sets of points (N, 3) and (M, 3)."""
    return float(np.sqrt(((first[:, None] - second[None]) ** 2).sum(axis=-1).min()))


def turn_x(angle: float) -> NDArray[np.float64]:
    """Turns y towards z, (3, 3)."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([(1.0, 0.0, 0.0), (0.0, cos, -sin), (0.0, sin, cos)])


def turn_y(angle: float) -> NDArray[np.float64]:
    """Turns z towards x, (3, 3)."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([(cos, 0.0, sin), (0.0, 1.0, 0.0), (-sin, 0.0, cos)])


def turn_z(angle: float) -> NDArray[np.float64]:
    """Turns x towards y, (3, 3)."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([(cos, -sin, 0.0), (sin, cos, 0.0), (0.0, 0.0, 1.0)])
