"""Jointed bodies of procedural motion: how a body moves in each action of ``motions.yaml``, and its picture."""

from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from gcvideo.files import read_yaml

TABLE: dict[str, Any] = read_yaml(__file__, "motions.yaml")
ACTIONS: dict[str, dict[str, Any]] = TABLE["bodies"]

# A motion in the plane is (z, b), complex (T,): a point p goes to z p + b, in widths of the frame, y downwards.
Motion = tuple[np.ndarray, np.ndarray]
# Joints: hip, neck, head; left hip, knee, ankle, shoulder, elbow, hand; the same on the right; the ground below.
HANDS = (8, 14)
GROUND = 15
# Two joints, the thickness of the limb in twelfths of the body, its garment: skin, shirt, trousers, sleeves, socks.
BONES = np.array(
    [(0, 1, 1.9, 1), (6, 12, 0.9, 1), (3, 9, 1.2, 2), (1, 2, 0.6, 0)]
    + [(start + a, start + b, *rest) for start in (3, 9) for a, b, *rest in ((0, 1, 1.1, 2), (1, 2, 0.8, 4))]
    + [(start + a, start + b, *rest) for start in (6, 12) for a, b, *rest in ((0, 1, 0.75, 1), (1, 2, 0.6, 3))]
)


def courses(u: np.ndarray, q: np.ndarray) -> dict[str, np.ndarray]:
    """The courses over time that ``motions.yaml`` explains, by name, each (T,), of progress and phase."""
    s, c = np.sin(q), np.cos(q)
    hop = 1 - (2 * (q / (2 * np.pi) % 1) - 1) ** 2
    parts = {"s": s, "c": c, "s+": s.clip(0), "s-": (-s).clip(0), "c+": c.clip(0), "p": (1 - c) / 2, "hop": hop}
    return {"one": np.ones_like(u), "u": u, "uu": u**2, "once": 1 / (1 + np.exp(-10 * u)), "q": q, **parts}


def value(entry: float | dict[str, float], time: dict[str, np.ndarray]) -> np.ndarray:
    """A number or sum of courses of ``motions.yaml`` over time, (T,)."""
    parts = entry if isinstance(entry, dict) else {"one": entry}
    return np.sum([factor * time[name] for name, factor in parts.items()], axis=0)


def pose_joints(action: str, u: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Joints of a body in an action, float (T, 16, 3), in heights of the body; axes: right, up, front; the ground at 0.

    Args:
        action: a key of ``ACTIONS``.
        u: (T,) progress of the clip, from -0.5 to 0.5.
        q: (T,) phase of a repeated motion, in radians.
    """
    pose, time = ACTIONS[action], courses(u, q)
    body = {key: value(pose.get(key, 0), time) for key in ("lean", "sway", "turn", "wheel", "spin")}
    zero = np.zeros((len(u), 3))
    neck = zero + 0.3 * _direction(np.pi - body["lean"], body["sway"])
    joints = [zero, neck, neck * 1.4]
    for sign, name, late in ((-1, "left", 0), (1, "right", np.pi if pose.get("alternate") else 0)):
        for limb, start, lengths in (("leg", zero, (0.24, 0.26)), ("arm", neck, (0.17, 0.19))):
            angles = {"side": 0.1, "bend": 0.2 * (limb == "arm"), **pose.get(f"{name} {limb}", pose.get(limb, {}))}
            forward, side, bend, out = (
                value(angles.get(key, 0), courses(u, q + late)) for key in ("forward", "side", "bend", "out")
            )
            start = start + np.array([sign * (0.13 if limb == "arm" else 0.07), 0, 0])
            middle = start + lengths[0] * _direction(forward, sign * side)
            joints += [start, middle, middle + lengths[1] * _direction(forward + bend, sign * (side + out))]
    points = np.stack(joints, axis=1)
    for name, i, j in (("turn", 2, 1), ("wheel", 0, 1), ("spin", 0, 2)):
        points[..., [i, j]] = turned(points[..., i], points[..., j], body[name][:, None])
    if pose.get("hang"):
        points -= points[:, HANDS].mean(axis=1, keepdims=True) - [0, 1.2, 0]
    else:
        points[..., 1] -= points[..., 1].min(axis=1, keepdims=True)
    right, up, front = (value(pose.get(key, 0), time) for key in ("shift", "lift", "drift"))
    points += np.stack([right, up, front], axis=-1)[:, None]
    return np.concatenate([points, np.stack([right, 0 * up, front], axis=-1)[:, None]], axis=1)


def _direction(forward: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Unit vectors (T, 3) of limbs that hang down where both angles are 0."""
    return np.stack([np.sin(side), -np.cos(side) * np.cos(forward), np.cos(side) * np.sin(forward)], axis=-1)


def turned(x: np.ndarray, y: np.ndarray, angle: np.ndarray | float) -> np.ndarray:
    """Coordinates (..., 2) after a turn from y to x."""
    return np.stack([x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)], axis=-1)


class Body:
    """A body of random build and clothes, seen from a random side, somewhere in the frame.

    Args:
        action: a key of ``ACTIONS``.
        u: (T,) progress of the clip.
        q: (T,) phase of a repeated motion, in radians.
        camera: a motion in the plane (z, b), complex (T,): a point p goes to z p + b, in widths of the frame.
        side: of the picture, in pixels.
        rng: decides everything that is random.
        tallest: height that the body may have, in heights of the frame.
    """

    def __init__(
        self, action: str, u: np.ndarray, q: np.ndarray, camera: Motion, side: int, rng: Generator, tallest: float = 1.0
    ) -> None:
        joints = pose_joints(action, u, q)
        x, depth = np.moveaxis(turned(joints[..., 0], joints[..., 2], rng.uniform(0, 2 * np.pi)), -1, 0)
        points = x * rng.uniform(0.8, 1.2) - 1j * (joints[..., 1] + rng.uniform(-0.25, 0.25) * depth)
        ends = BONES[:, :2].astype(int)
        order = np.argsort(-depth[:, ends].mean(axis=2), axis=1)  # the near limbs last
        skin = np.array([1.0, 0.75, 0.6]) * rng.uniform(60, 250)
        shirt, trousers, extra = rng.uniform(0, 255, (3, 3)) * rng.choice([0.3, 1.0], (3, 1))
        sleeves, socks = (skin if rng.random() < 0.5 else garment for garment in (shirt, trousers))
        garments = np.stack([skin, shirt, trousers, sleeves, socks])[BONES[:, 3].astype(int)]
        colours = (garments * rng.uniform(0.75, 1, (len(BONES), 1))).astype(int).tolist()
        widths = BONES[:, 2] / 12 * rng.uniform(0.6, 1.3) * rng.uniform(0.8, 1.2, len(BONES))
        limbs = [(*pair, width, tuple(rgb)) for pair, width, rgb in zip(ends.tolist(), widths, colours, strict=True)]
        self._limbs = [[limbs[bone] for bone in row] for row in order]
        self._head, self._skin = rng.uniform(0.055, 0.085), tuple(skin.astype(int).tolist())
        self._prop, self._extra, self._q = ACTIONS[action].get("prop"), tuple(extra.astype(int).tolist()), q
        height = rng.uniform(0.4, 1) * tallest
        points = (points - points.mean()) * height + complex(*rng.uniform(-0.2, 0.2, 2)) * (1.6 - height)
        self._places = (camera[0][:, None] * points + camera[1][:, None] + (0.5 + 0.5j)) * side  # (T, 16), in pixels
        self._heights = height * abs(camera[0]) * side

    def draw(self, picture: Image.Image, k: int) -> None:
        """Draw frame ``k`` into an RGB picture."""
        place, height = self._places[k], self._heights[k]
        pen, xy = ImageDraw.Draw(picture), place.view(float).reshape(-1, 2).tolist()
        if self._prop:
            line = self._prop_line(k, place, height).astype(complex)
            pen.line(line.view(float).tolist(), fill=self._extra, width=max(2, round(0.03 * height)))
        for start, end, width, colour in self._limbs[k]:
            pen.line([*xy[start], *xy[end]], fill=colour, width=max(2, round(width * height)))
            pen.circle(xy[end], width * height / 2, fill=colour)
        pen.circle(xy[2], self._head * height, fill=self._skin)

    def _prop_line(self, k: int, place: np.ndarray, height: float) -> np.ndarray:
        left, right = sorted(place[list(HANDS)], key=lambda hand: hand.real)
        if self._prop == "stick":
            hand, elbow = place[HANDS[1]], place[HANDS[1] - 1]
            return np.array([hand, hand + (hand - elbow) / (abs(hand - elbow) + 1e-6) * 0.45 * height])
        if self._prop == "rope":
            t = np.linspace(-1, 1, 9)
            return (left + right) / 2 + (right - left) / 2 * t + 0.7j * height * np.cos(self._q[k]) * (1 - t**2)
        ends = (left, right) if self._prop == "bar" else (place[GROUND], place[GROUND])
        return np.array([ends[0] - 0.4 * height, ends[1] + 0.4 * height])
