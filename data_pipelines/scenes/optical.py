"""Optical scenes: airfield, harbour, car park, tank farm or village on the two sides of a road."""

from typing import NamedTuple

import cv2
import numpy as np

from data_pipelines.scenes import shapes
from data_pipelines.scenes.optical_things import SOLIDS, SPRITES
from data_pipelines.scenes.shapes import Ground, Thing

CLASSES = ('plane', 'ship', 'small-vehicle', 'storage-tank')


class Site(NamedTuple):
  """What a scene is drawn with."""

  rng: np.random.Generator
  size: int
  canvas: np.ndarray  # [size, size, 3] float32, painted in place
  ground: Ground
  line: shapes.Frame  # the road
  texture: np.ndarray  # [size, size], coarse to fine
  grain: np.ndarray  # [size, size], fine

  def fill(self, mask, colour, roughness, grain=3.0):
    texture = roughness * self.texture[mask] + grain * self.grain[mask]
    self.canvas[mask] = np.float32(colour) + texture[:, None]


def scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[Thing]]:
  """Draws one picture: a road, and on each of its sides an airfield, water, a car park or the like.

  Returns:
    image [size, size, 3] uint8 RGB, and its objects.
  """
  site = Site(
    rng, size, np.empty((size, size, 3), np.float32), Ground(size), shapes.frame(rng, size),
    shapes.noise(rng, size, 80, 5), rng.standard_normal((size, size), np.float32),
  )  # fmt: skip
  width = float(rng.uniform(30, 36))
  _soil(site)
  _road(site, width)
  things = _traffic(site, width)
  kinds = rng.choice(len(ZONES), 2, False, CHANCES)
  for kind, side in zip(kinds, (-1, 1), strict=True):
    off = side * site.line.d - width / 2
    things += ZONES[kind](site, off > 5, off, side)
  sun = rng.uniform(0, 2 * np.pi)
  sun = np.float64((np.cos(sun), np.sin(sun))) * rng.uniform(0.4, 1.3)
  solid = [(thing, *SOLIDS[thing.name]) for thing in things]
  site.canvas[:] *= 1 - 0.55 * shapes.shadows(size, solid, sun)[..., None]
  for thing in things:
    SPRITES[thing.name](thing, rng).paste(site.canvas, thing)
  return _expose(site), [thing for thing in things if thing.name in CLASSES]


def _soil(site):
  soils = ((86, 98, 62), (112, 104, 76), (134, 118, 92), (72, 88, 58))
  tint = site.texture[::-1][..., None] * np.float32((10.0, 4.0, 2.0))
  light = 1 + 0.1 * site.texture + 0.04 * site.grain
  site.canvas[:] = np.float32(soils[site.rng.integers(4)]) * light[..., None] + tint


def _road(site, width):
  rng, d = site.rng, np.abs(site.line.d)
  asphalt = np.float32((104, 104, 106)) * rng.uniform(0.7, 1.2)
  site.fill(d < width / 2 + 5, asphalt * 1.25, 4)
  site.fill(d < width / 2, asphalt, 4)
  dash = (d < 0.8) & (shapes.saw(site.line.t, 22) < 11)
  site.canvas[dash | (np.abs(d - width / 2 + 2) < 0.6)] = 205
  if rng.random() < 0.5:  # a zebra crossing
    across = (d < width / 2) & (np.abs(site.line.t - rng.uniform(-60, 60)) < 6)
    site.canvas[across & (shapes.saw(site.line.d, 6) < 3)] = 210


def _traffic(site, width):
  things, rng, line = [], site.rng, site.line
  for lane in (-0.25, 0.25):
    t = -0.7 * site.size + rng.uniform(0, 60)
    while t < 0.7 * site.size:
      x, y = line.at(t, lane * width + rng.uniform(-1, 1))
      car = _car(x, y, line.angle + (np.pi if lane < 0 else 0) + rng.normal(0, 0.03), rng)
      if site.ground.take(car, margin=1):
        things.append(car)
      t += rng.uniform(40, 150)
  site.ground.taken |= np.abs(line.d) < width / 2 + 3
  return things


def _car(x, y, angle, rng):
  return Thing('small-vehicle', x, y, rng.uniform(20, 25), rng.uniform(10, 11.5), angle)


def _apron(site, zone, off, side):
  rng, line = site.rng, site.line
  concrete = np.float32((168, 166, 158)) * rng.uniform(0.8, 1.15)
  site.fill(zone, concrete, 5)
  slab = rng.uniform(16, 26)
  joints = (shapes.saw(line.t, slab) < 1.0) | (shapes.saw(line.d, slab) < 1.0)
  site.canvas[zone & joints] *= 0.9
  site.canvas[zone & (np.abs(off - rng.uniform(30, 70)) < 1.0)] = (200, 170, 60)
  for _ in range(rng.integers(1, 4)):  # oil and rubber
    x, y = rng.integers(0, site.size, 2).tolist()
    cv2.circle(site.canvas, (x, y), int(rng.integers(3, 9)), (concrete * 0.75).tolist(), -1)
  row = line.angle - side * np.pi / 2 if rng.random() < 0.5 else None

  def make(x, y):
    angle = rng.uniform(-np.pi, np.pi) if row is None else row + rng.normal(0, 0.06)
    length = rng.uniform(32, 54)
    return Thing('plane', x, y, length, length * rng.uniform(0.8, 0.95), angle)

  things = site.ground.scatter(rng, zone, int(rng.integers(6, 11)), make, 13, 1)

  def cart(x, y):
    return _car(x, y, rng.uniform(-np.pi, np.pi), rng)

  return things + site.ground.scatter(rng, zone, int(rng.integers(0, 3)), cart, 10, 3)


def _water(site, zone, off, side):
  rng, line = site.rng, site.line
  zone = zone & (off + 5 * site.texture > 10)
  waves = cv2.GaussianBlur(site.grain, (0, 0), 1.5, None, 0.8)
  seas = ((28, 48, 52), (36, 62, 72), (52, 78, 78), (30, 52, 40))
  site.fill(zone, seas[rng.integers(4)], 3, 0)
  site.canvas[zone] += 9 * waves[zone, None]
  shore = cv2.dilate(zone.astype(np.uint8), np.ones((9, 9))).astype(bool) & ~zone & (off > 0)
  site.canvas[shore] = (site.canvas[shore] + (190, 180, 160)) / 2
  site.canvas[zone & (waves > 0.75)] += 25  # glints
  if rng.random() < 0.5:  # a jetty
    jetty = zone & (np.abs(line.t - rng.uniform(-60, 60)) < 4) & (off < rng.uniform(30, 70))
    site.fill(jetty, (150, 142, 130), 2)
    zone = zone & ~cv2.dilate(jetty.astype(np.uint8), np.ones((5, 5))).astype(bool)

  def make(x, y):
    moored = off[int(y), int(x)] < 30
    angle = line.angle + np.pi * rng.integers(2) if moored else rng.uniform(-np.pi, np.pi)
    length = rng.uniform(32, 62)
    return Thing('ship', x, y, length, rng.uniform(11, 12 + length / 14), angle)

  things = _marina(site, off, side) if rng.random() < 0.5 else []
  things += site.ground.scatter(rng, zone, int(rng.integers(3, 8)), make, 8, 2)
  for thing in things:
    if rng.random() < 0.3:
      _wake(site, thing)
  return things


def _marina(site, off, side):
  """Boats moored side by side, their bows or sterns to the shore."""
  rng, line = site.rng, site.line
  edge = float((side * line.d - off)[0, 0])
  things, t, reach = [], rng.uniform(-110, 0), rng.uniform(20, 26)
  for _ in range(rng.integers(4, 9)):
    length, width = rng.uniform(32, 44), rng.uniform(11, 13)
    x, y = line.at(t + width / 2, side * (edge + reach + length / 2))
    boat = Thing('ship', x, y, length, width, line.angle + np.pi * (0.5 + rng.integers(2)))
    if site.ground.take(boat, margin=0):
      things.append(boat)
    t += width + rng.uniform(1.5, 4)
  return things


def _wake(site, thing):
  spread = 1 + site.rng.random()
  stern = np.float64([(-0.5, -0.3), (-0.5, 0.3), (-spread, 0.9), (-spread, -0.9)])
  mask = np.zeros((site.size, site.size), np.float32)
  cv2.fillConvexPoly(mask, np.rint(shapes.to_picture(thing, stern)).astype(np.int32), 1)
  site.canvas[:] += 26 * cv2.GaussianBlur(mask, (0, 0), 2)[..., None]


def _parking(site, zone, off, side):
  rng, line = site.rng, site.line
  site.fill(zone, np.float32((96, 96, 98)) * rng.uniform(0.75, 1.3), 4)
  pitch, depth, fill = rng.uniform(13.5, 16), 29.0, rng.uniform(0.3, 0.7)
  edge = float((side * line.d - off)[0, 0])  # from the line to where `off` begins
  things = []
  for first in (8.0, 8 + depth + rng.uniform(22, 28)):
    stalls = zone & (off > first) & (off < first + depth)
    marks = (shapes.saw(line.t, pitch) < 1.0) | (off > first + depth - 1)
    site.canvas[stalls & marks] = 190
    for k in range(*(np.float64((-0.7, 0.7)) * site.size / pitch).astype(int)):
      x, y = line.at((k + 0.5) * pitch + 0.5, side * (first + depth / 2 + edge))
      heading = line.angle + np.pi * (0.5 + rng.integers(2)) + rng.normal(0, 0.03)
      car = _car(x + rng.uniform(-1, 1), y + rng.uniform(-1, 1), heading, rng)
      if rng.random() < fill and site.ground.take(car, zone, 0):
        things.append(car)
  return things + site.ground.scatter(rng, zone & (off > 95), 4, _tree(rng), 8)


def _yard(site, zone, off, side):
  rng = site.rng
  gravel = ((150, 140, 120), (128, 124, 116), (120, 118, 88))[rng.integers(3)]
  site.fill(zone, np.float32(gravel) * rng.uniform(0.85, 1.1), 8)
  site.canvas[zone & (np.abs(shapes.saw(off, 62) - 4) < 1.2)] *= 0.75  # bunds and pipes
  site.canvas[zone & (shapes.saw(site.line.t, 74) < 2)] *= 1.2
  usual = rng.uniform(22, 44)

  def make(x, y):
    diameter = usual * rng.uniform(0.9, 1.1) if rng.random() < 0.8 else rng.uniform(18, 46)
    return Thing('storage-tank', x, y, diameter, diameter)

  return site.ground.scatter(rng, zone, int(rng.integers(4, 9)), make, 14, 3)


def _field(site, zone, off, side):
  rng = site.rng

  def house(x, y):
    angle = site.line.angle + rng.integers(2) * np.pi / 2
    return Thing('roof', x, y, rng.uniform(26, 52), rng.uniform(20, 32), angle)

  things = site.ground.scatter(rng, zone, int(rng.integers(2, 6)), house, 12, 4)
  return things + site.ground.scatter(rng, zone, int(rng.integers(10, 25)), _tree(rng), 5, 0)


def _tree(rng):
  def make(x, y):
    diameter = rng.uniform(9, 24)
    return Thing('tree', x, y, diameter, diameter, rng.uniform(-3, 3))

  return make


ZONES = (_apron, _water, _parking, _yard, _field)
CHANCES = (0.34, 0.2, 0.13, 0.21, 0.12)


def _expose(site):
  rng = site.rng
  image = cv2.GaussianBlur(site.canvas, (0, 0), rng.uniform(0.4, 0.8))
  image *= rng.uniform(0.85, 1.15) * rng.uniform(0.95, 1.05, 3).astype(np.float32)
  image += (rng.uniform(0, 22) + rng.uniform(1, 4) * site.grain[:, ::-1])[..., None]
  return np.clip(image, 0, 255, out=image).astype(np.uint8)
