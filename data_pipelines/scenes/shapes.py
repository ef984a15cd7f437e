"""What the three sensors' scenes share: outlines, sprites, textures and the placing of objects.

Coordinates are those of OpenCV: the centre of pixel j lies at j. An object's own frame has u along
its length (heading +u) and v across, both in [-0.5, 0.5] at the edges of its box.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

SPRITE_SCALE = 2  # sprite pixels a picture pixel, so that a rotated sprite keeps its edges


class Thing(NamedTuple):
  """An object or distractor: centre, length, width in px; angle in radians, clockwise on screen."""

  name: str
  x: float
  y: float
  length: float
  width: float
  angle: float = 0.0


_HULL = [(-0.5, 0.34), (-0.44, 0.5), (0.2, 0.5), (0.4, 0.28), (0.5, 0.0)]
_PLANE = [
  (-0.5, 0.2), (-0.43, 0.2), (-0.3, 0.06), (-0.08, 0.07), (-0.2, 0.5), (-0.11, 0.5),
  (0.12, 0.07), (0.38, 0.06), (0.46, 0.04), (0.5, 0.0),
]  # fmt: skip


def _mirrored(half) -> np.ndarray:
  return np.float64(half + [(u, -v) for u, v in reversed(half)])


RECTANGLE = np.float64([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
_turns = np.linspace(0, 2 * np.pi, 64, endpoint=False)
HULL = _mirrored(_HULL)
PLANE = _mirrored([(-0.47, 0.0)] + _PLANE)
DISC = 0.5 * np.stack([np.cos(_turns), np.sin(_turns)], 1)


def to_picture(thing: Thing, points: np.ndarray) -> np.ndarray:
  """Points [n, 2] of the object's frame in pixels [n, 2]."""
  return points @ _turn(thing).T + (thing.x, thing.y)


def _turn(thing: Thing) -> np.ndarray:
  c, s = math.cos(thing.angle), math.sin(thing.angle)
  return np.array([[c * thing.length, -s * thing.width], [s * thing.length, c * thing.width]])


def corners(thing: Thing) -> np.ndarray:
  """The oriented box as [4, 2], clockwise on screen, from the rear left corner."""
  return to_picture(thing, RECTANGLE)


def envelope(thing: Thing, outline: np.ndarray) -> np.ndarray:
  """Corners [4, 2] of the upright box around the outline, clockwise from the top left."""
  points = to_picture(thing, outline)
  (x1, y1), (x2, y2) = points.min(0), points.max(0)
  return np.float64([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])


class Sprite:
  """An object's picture in its own frame, painted by parts: colour [h, w, C], coverage [h, w]."""

  def __init__(self, thing: Thing, outline: np.ndarray, colour):
    h, w = (max(4, round(SPRITE_SCALE * side)) for side in (thing.width, thing.length))
    self.cover = np.zeros((h, w), np.float32)
    self.colour = np.empty((h, w, np.size(colour)), np.float32)
    self.colour[:] = colour
    cv2.fillPoly(self.cover, [self._index(outline)], 1.0)

  def _index(self, points) -> np.ndarray:
    h, w = self.cover.shape
    points = (np.asarray(points, np.float64) + 0.5) * (w - 1, h - 1)
    return np.rint(points).astype(np.int32)

  def part(self, points, colour):
    """Paints a polygon [n, 2] or a box (u1, v1, u2, v2)."""
    if np.ndim(points) == 1:
      u1, v1, u2, v2 = points
      points = [(u1, v1), (u2, v1), (u2, v2), (u1, v2)]
    cv2.fillPoly(self.colour, [self._index(points)], np.ravel(colour).tolist())
    return self

  def shade(self, across: float):
    """Brightens one long side and darkens the other by the fraction `across`."""
    v = np.linspace(-across, across, self.cover.shape[0], dtype=np.float32)
    self.colour *= 1 + v[:, None, None]
    return self

  def paste(self, canvas: np.ndarray, thing: Thing, opacity: float = 1.0):
    """Lays the sprite on the canvas [H, W, C] in place, anti-aliased, cut at the canvas's edge."""
    h, w = self.cover.shape
    points = corners(thing)
    x1, y1 = np.maximum(np.floor(points.min(0)).astype(int) - 1, 0)
    x2, y2 = np.minimum(np.ceil(points.max(0)).astype(int) + 2, canvas.shape[1::-1])
    if x1 >= x2 or y1 >= y2:
      return
    matrix = np.empty((2, 3))
    matrix[:, :2] = _turn(thing) / (w, h)
    matrix[:, 2] = (thing.x - x1, thing.y - y1) - matrix[:, :2] @ ((w - 1) / 2, (h - 1) / 2)
    layers = np.empty((h, w, self.colour.shape[2] + 1), np.float32)
    layers[..., :-1] = self.colour * self.cover[..., None]  # premultiplied
    layers[..., -1] = self.cover
    layers = cv2.warpAffine(layers, matrix, (x2 - x1, y2 - y1), flags=cv2.INTER_LINEAR) * opacity
    patch = canvas[y1:y2, x1:x2]
    patch *= 1 - layers[..., -1:]
    patch += layers[..., :-1]


def noise(rng: np.random.Generator, size: int, period: float, octaves: int = 1) -> np.ndarray:
  """Smooth noise [size, size] of about zero mean and unit deviation; octaves halve the period."""
  total = np.zeros((size, size), np.float32)
  for octave in range(octaves):
    cells = min(size, max(2, math.ceil(size * 2**octave / period) + 1))
    grid = rng.standard_normal((cells, cells), np.float32) * np.float32(0.6**octave)
    total += cv2.resize(grid, (size, size), interpolation=cv2.INTER_LINEAR)
  # 0.7: what interpolation leaves of a deviation; then the geometric sum of the octaves' variances
  return total / np.float32(0.7 * ((1 - 0.36**octaves) / 0.64) ** 0.5)


def saw(values: np.ndarray, period: float) -> np.ndarray:
  """values modulo period (much faster than np.mod)."""
  turns = values * np.float32(1 / period)
  return (turns - np.floor(turns)) * np.float32(period)


def shadows(size: int, things, shift) -> np.ndarray:
  """Soft shadow [size, size] in 0..1 of (thing, outline, height) triples, thrown along `shift`."""
  mask = np.zeros((size, size), np.float32)
  for thing, outline, height in things:
    points = to_picture(thing, outline)
    for part in (0.4, 0.7, 1.0):
      moved = points + np.multiply(shift, height * part)
      cv2.fillPoly(mask, [np.rint(moved * 16).astype(np.int32)], 1.0, shift=4)
  return cv2.GaussianBlur(mask, (0, 0), 0.9)


class Frame(NamedTuple):
  """A line through the picture: t [H, W] along it, d [H, W] off it, in px."""

  x: float
  y: float
  angle: float
  t: np.ndarray
  d: np.ndarray

  def at(self, t: float, d: float) -> tuple[float, float]:
    c, s = np.cos(self.angle), np.sin(self.angle)
    return self.x + c * t - s * d, self.y + s * t + c * d


def frame(rng: np.random.Generator, size: int, spread: float = 0.15) -> Frame:
  """A line at a random angle that passes within `spread * size` of the middle."""
  x, y = size * (0.5 + rng.uniform(-spread, spread, 2))
  angle = rng.uniform(-np.pi, np.pi)
  yy, xx = np.mgrid[:size, :size].astype(np.float32)
  c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
  return Frame(x, y, angle, c * (xx - x) + s * (yy - y), c * (yy - y) - s * (xx - x))


class Ground:
  """What is taken of the picture, so that things do not overlap."""

  def __init__(self, size: int):
    self.size = size
    self.taken = np.zeros((size, size), bool)

  def _cover(self, thing: Thing, margin: float):
    grown = thing._replace(length=thing.length + 2 * margin, width=thing.width + 2 * margin)
    points = np.rint(corners(grown)).astype(np.int32)
    (x1, y1), (x2, y2) = points.min(0), points.max(0) + 1
    if x1 < 0 or y1 < 0 or x2 > self.size or y2 > self.size:
      return None
    mask = np.zeros((y2 - y1, x2 - x1), np.uint8)
    cv2.fillConvexPoly(mask, points - (x1, y1), 1)
    return (slice(y1, y2), slice(x1, x2)), mask.astype(bool)

  def take(self, thing: Thing, zone: np.ndarray | None = None, margin: float = 1.5) -> bool:
    """Occupies the thing's box and returns True if it lies in the zone, the picture and free."""
    x, y = int(thing.x), int(thing.y)
    if not (0 <= x < self.size and 0 <= y < self.size) or self.taken[y, x]:
      return False
    cover = self._cover(thing, margin)
    if cover is None:
      return False
    where, mask = cover
    if (self.taken[where] & mask).any() or (zone is not None and (~zone[where] & mask).any()):
      return False
    self.taken[where] |= mask
    return True

  def scatter(self, rng, zone, count: int, make, clear: float, margin: float = 1.5) -> list:
    """Up to `count` things `make(x, y)` at free places of the zone, `clear` px from its edge."""
    room = cv2.distanceTransform((zone & ~self.taken).astype(np.uint8), cv2.DIST_L1, 3)
    places = np.flatnonzero(room > clear)
    things = []
    for place in rng.choice(places, count * 15) if len(places) else ():
      thing = make(float(place % self.size), float(place // self.size))
      if self.take(thing, zone, margin):
        things.append(thing)
        if len(things) == count:
          break
    return things
