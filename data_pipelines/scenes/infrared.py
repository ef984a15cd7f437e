"""Infrared scenes: streets, car parks and greens, as a drone sees them from straight above.

Brightness is temperature through an automatic gain: low contrast, slow gradients, a soft lens, rows
and columns of the detector's fixed pattern. Vehicles may be warmer or colder than the ground.
"""

from typing import NamedTuple

import cv2
import numpy as np

from data_pipelines.scenes import shapes
from data_pipelines.scenes.shapes import RECTANGLE, Ground, Sprite, Thing

CLASSES = ('car', 'truck', 'bus')
_SIDES = {
  'car': ((20, 25), (10, 11.5)),
  'truck': ((34, 46), (13, 15)),
  'bus': ((50, 64), (13.5, 16)),
}
ROAD = 0.5  # temperature of the road, about which all others lie; 0..1 is the picture's range


def vehicle(name: str, x, y, angle, rng) -> Thing:
  (l1, l2), (w1, w2) = _SIDES[name]
  return Thing(name, x, y, rng.uniform(l1, l2), rng.uniform(w1, w2), angle)


def car(thing: Thing, rng, base: float) -> Sprite:
  sprite = Sprite(thing, RECTANGLE, base)
  sprite.part((0.22, -0.42, 0.48, 0.42), base + rng.uniform(-0.02, 0.22))  # bonnet
  glass = base - rng.uniform(0.1, 0.25)
  sprite.part((0.08, -0.38, 0.22, 0.38), glass).part((-0.42, -0.38, -0.3, 0.38), glass)
  return sprite.part((-0.28, -0.36, 0.07, 0.36), base + rng.uniform(-0.08, 0.06))


def truck(thing: Thing, rng, base: float) -> Sprite:
  load = base + rng.uniform(-0.16, 0.1)
  sprite = Sprite(thing, RECTANGLE, load)
  for u in np.arange(-0.46, 0.2, 0.11):
    sprite.part((u, -0.46, u + 0.02, 0.46), load - 0.05)
  sprite.part((0.2, -0.5, 0.26, 0.5), base - 0.26)  # the gap behind the cab
  sprite.part((0.26, -0.46, 0.5, 0.46), base + rng.uniform(0.06, 0.24))
  return sprite.part((0.38, -0.4, 0.45, 0.4), base - 0.14)


def bus(thing: Thing, rng, base: float) -> Sprite:
  sprite = Sprite(thing, RECTANGLE, base - 0.06)
  sprite.part((-0.49, -0.38, 0.47, 0.38), base + rng.uniform(-0.02, 0.06))
  unit = base + rng.choice((-0.2, 0.22))
  for u in (-0.2, 0.18):  # coolers and hatches on the roof
    sprite.part((u - 0.06, -0.24, u + 0.06, 0.24), unit)
  sprite.part((-0.5, -0.4, -0.42, 0.4), base + rng.uniform(0.12, 0.28))  # engine
  return sprite.part((0.44, -0.42, 0.48, 0.42), base - 0.2)


SPRITES = {'car': car, 'truck': truck, 'bus': bus}


class Site(NamedTuple):
  """What a scene is drawn with; `heat` [size, size, 1] is painted in place."""

  rng: np.random.Generator
  size: int
  heat: np.ndarray
  ground: Ground
  line: shapes.Frame
  texture: np.ndarray


def scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[Thing]]:
  """Draws one picture: a street with what lies on its two sides.

  Returns:
    image [size, size] uint8, and its objects.
  """
  line, texture = shapes.frame(rng, size), shapes.noise(rng, size, 60, 5)
  site = Site(rng, size, np.full((size, size, 1), ROAD, np.float32), Ground(size), line, texture)
  width = float(rng.uniform(46, 60))
  _street(site, width)
  things = _traffic(site, width)
  for side in (-1, 1):
    off = side * line.d - width / 2
    things += ZONES[rng.choice(len(ZONES), p=CHANCES)](site, off > 3, off, side)
  drive = rng.choice((1, 1, -1)) * rng.uniform(0.12, 0.3)  # warmer or colder than the road
  for thing in things:
    warm = drive * rng.uniform(0.5, 1.3) if rng.random() < 0.7 else rng.choice((-0.14, 0.1))
    _halo(site, thing)
    SPRITES[thing.name](thing, rng, ROAD + warm).paste(site.heat, thing)
  _people(site)
  return _expose(site), things


def _street(site, width):
  rng, heat, line = site.rng, site.heat[..., 0], site.line
  heat += 0.015 * site.texture
  d = np.abs(line.d)
  heat[(d < 0.8) & (shapes.saw(line.t, 24) < 12)] -= 0.05
  heat[np.abs(d - width / 2) < 1.5] += rng.uniform(-0.12, 0.12)
  for _ in range(rng.integers(1, 4)):  # manholes, patches of new asphalt
    x, y = line.at(rng.uniform(-120, 120), rng.uniform(-0.4, 0.4) * width)
    warm = ROAD + float(rng.choice((-0.12, 0.2)))
    cv2.circle(heat, (int(x), int(y)), int(rng.integers(3, 6)), warm, -1)


def _traffic(site, width):
  things, rng, line = [], site.rng, site.line
  for lane in (-0.34, -0.12, 0.12, 0.34):
    t = -0.7 * site.size + rng.uniform(0, 90)
    while t < 0.7 * site.size:
      name = CLASSES[rng.choice(3, p=(0.34, 0.34, 0.32))]
      x, y = line.at(t, lane * width + rng.uniform(-1, 1))
      one = vehicle(name, x, y, line.angle + (np.pi if lane < 0 else 0) + rng.normal(0, 0.03), rng)
      if site.ground.take(one, margin=0.5):
        things.append(one)
      t += rng.uniform(60, 170)
  site.ground.taken |= np.abs(line.d) < width / 2 + 2
  return things


def _lot(site, zone, off, side):
  """A car park: rows of cars, or of trucks and buses, side by side."""
  rng, line = site.rng, site.line
  site.heat[zone, 0] = ROAD + rng.uniform(-0.1, 0.1) + 0.02 * site.texture[zone]
  edge = float((side * line.d - off)[0, 0])
  long = rng.random() < 0.5
  pitch, depth = (19.5, 66.0) if long else (rng.uniform(13.5, 16), 29.0)
  things, fill = [], rng.uniform(0.35, 0.75)
  for first in (6.0,) if long else (6.0, 6 + depth + 20):
    marks = zone & (off > first) & (off < first + depth) & (shapes.saw(line.t, pitch) < 1.0)
    site.heat[marks] -= 0.05
    for k in range(*(np.float64((-0.7, 0.7)) * site.size / pitch).astype(int)):
      x, y = line.at((k + 0.5) * pitch + 0.5, side * (first + depth / 2 + edge))
      heading = line.angle + np.pi * (0.5 + rng.integers(2)) + rng.normal(0, 0.02)
      one = vehicle(('truck', 'bus')[rng.integers(2)] if long else 'car', x, y, heading, rng)
      if rng.random() < fill and site.ground.take(one, zone, 0):
        things.append(one)
  return things


def _green(site, zone, off, side):
  """Lawn and tree crowns, ragged and cool, and a few vehicles that stand anyhow."""
  rng, heat = site.rng, site.heat[..., 0]
  lawn = site.texture[::-1] + 0.6 * shapes.noise(rng, site.size, 6, 2)
  heat[zone] = ROAD + rng.uniform(-0.22, 0.1) + 0.04 * lawn[zone]
  things = _strays(site, zone)
  for _ in range(rng.integers(6, 22)):
    x, y, r = *rng.integers(0, site.size, 2).tolist(), int(rng.integers(4, 13))
    if zone[y, x] and not site.ground.taken[max(y - r, 0) : y + r, max(x - r, 0) : x + r].any():
      cool = float(heat[y, x] + rng.uniform(-0.18, 0.08))
      for dx, dy in rng.integers(-r // 2, r // 2 + 1, (6, 2)).tolist():
        cv2.circle(heat, (x + dx, y + dy), max(2, r // 2), cool + float(rng.normal(0, 0.04)), -1)
  return things


def _roofs(site, zone, off, side):
  """Flat roofs with warm ducts, about as large as a bus, on a paved yard."""
  rng = site.rng
  site.heat[zone, 0] = ROAD + rng.uniform(-0.12, 0.06) + 0.02 * site.texture[zone]
  things = _strays(site, zone)

  def roof(x, y):
    angle = site.line.angle + np.pi / 2 * rng.integers(2)
    return Thing('', x, y, rng.uniform(34, 80), rng.uniform(24, 44), angle)

  for thing in site.ground.scatter(rng, zone, int(rng.integers(1, 4)), roof, 14, 2):
    base = ROAD + rng.uniform(-0.25, 0.25)
    sprite = Sprite(thing, RECTANGLE, base + 0.08).part((-0.47, -0.45, 0.47, 0.45), base)
    for u, v in rng.uniform(-0.38, 0.3, (rng.integers(1, 5), 2)):
      sprite.part((u, v, u + 5 / thing.length, v + 5 / thing.width), base + rng.uniform(-0.2, 0.3))
    sprite.paste(site.heat, thing)
  return things


def _strays(site, zone):
  rng = site.rng

  def make(x, y):
    return vehicle(CLASSES[rng.integers(3)], x, y, rng.uniform(-np.pi, np.pi), rng)

  return site.ground.scatter(rng, zone, int(rng.integers(2, 5)), make, 9, 3)


ZONES = (_lot, _green, _roofs)
CHANCES = (0.4, 0.35, 0.25)


def _halo(site, thing):
  """The shaded, cooler ground beside and under a vehicle."""
  grown = thing._replace(length=thing.length + 3, width=thing.width + 3)
  Sprite(grown, RECTANGLE, ROAD - 0.1).paste(site.heat, grown, 0.6)


def _people(site):
  """Warm, 4 to 7 px: animals and people."""
  for _ in range(site.rng.integers(0, 9)):
    x, y = site.rng.integers(4, site.size - 4, 2).tolist()
    if not site.ground.taken[y, x]:
      axes = (int(site.rng.integers(1, 3)), int(site.rng.integers(2, 4)))
      warm = ROAD + float(site.rng.uniform(0.15, 0.4))
      cv2.ellipse(site.heat, (x, y), axes, float(site.rng.uniform(0, 180)), 0, 360, warm, -1)


def _expose(site):
  rng, size = site.rng, site.size
  heat = cv2.GaussianBlur(site.heat, (0, 0), rng.uniform(0.6, 1.0))
  heat += rng.uniform(0.05, 0.16) * shapes.noise(rng, size, 200)
  heat += 0.0012 * rng.uniform(-1, 1) * site.line.t
  heat += 0.008 * rng.standard_normal(size, np.float32)  # columns, then rows
  heat += 0.005 * rng.standard_normal((size, 1), np.float32)
  heat += rng.uniform(0.008, 0.02) * rng.standard_normal((size, size), np.float32)
  image = rng.uniform(90, 140) + rng.uniform(150, 230) * (heat - ROAD)
  return np.clip(image, 0, 255).astype(np.uint8)
