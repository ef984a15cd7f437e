"""SAR scenes: reflectivity seen through a coherent impulse response, which makes the speckle.

A resolution cell holds many scatterers, so its echo is a circular complex normal number with the
cell's reflectivity as variance; strong single scatterers add a fixed amplitude. The radar's impulse
response (a sinc in range and in azimuth) gives speckle its grain and bright points their crosses of
side lobes; averaging the intensity of independent looks gives the equivalent number of looks.
"""

import cv2
import numpy as np

from data_pipelines.scenes import shapes
from data_pipelines.scenes.shapes import DISC, HULL, PLANE, RECTANGLE, Ground, Sprite, Thing

CLASSES = ('ship', 'aircraft', 'tank')
OUTLINES = {'ship': HULL, 'aircraft': PLANE, 'tank': DISC}
SEA, APRON, SOIL = 0.012, 0.02, 0.09  # mean intensity; 1 is about white


def box(thing: Thing) -> np.ndarray:
  """The upright box of the outline [4, 2] in continuous coordinates (a pixel's left edge is j)."""
  return shapes.envelope(thing, OUTLINES[thing.name]) + 0.5


def scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[Thing]]:
  """Draws one picture: sea and land on either side of a coast, or one of them alone.

  Returns:
    image [size, size] uint8 amplitude, and its objects.
  """
  power, echo, things = reflectivity(rng, size)
  return _focus(rng, power, echo), things


def reflectivity(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, list[Thing]]:
  """What a radar would see of a scene.

  Returns:
    mean intensity of every cell [size, size], amplitudes of single strong scatterers [size, size],
    objects.
  """
  line = shapes.frame(rng, size, 0.1)
  texture = shapes.noise(rng, size, 70, 5)
  shift = rng.choice((-size, 0, size), p=(0.2, 0.68, 0.12))  # all land, a coast, all sea
  quay = rng.random() < 0.75
  off = line.d + shift + (0 if quay else 7) * texture
  power = _clutter(rng, off, line, texture)
  ground, echo = Ground(size), np.zeros((size, size), np.float32)
  sea, land = off > 4, off < -6
  things = _berths(rng, ground, line, off, power) if quay and not shift else []
  things += _afloat(rng, ground, sea)
  things += _ashore(rng, ground, land, power, line)
  canvas = power[..., None]
  for thing in things:
    if thing.name == 'aircraft':
      _gate(thing, rng, canvas)
  for thing in things:
    paint(thing, rng).paste(canvas, thing)
    _glints(thing, rng, echo)
  _buildings(rng, ground, land, canvas, echo, line)
  _rocks(rng, ground, sea & (off < 40), canvas)
  _reflectors(rng, ground, echo)
  return power, echo, things


def _clutter(rng, off, line, texture):
  """Mean intensity of sea (swell, wind patches) and land (fields with their own level)."""
  swell = np.sin(line.t * rng.uniform(0.15, 0.5) + 2 * texture) * rng.uniform(0, 0.35)
  sea = SEA * np.exp(rng.uniform(-1.5, 1.5)) * np.exp(0.25 * texture + swell)
  plots = np.floor(line.t / rng.uniform(40, 90)) * 7 + np.floor(line.d / rng.uniform(40, 90)) * 3
  level = rng.uniform(0.55, 1.6, 16).astype(np.float32)[plots.astype(int) % 16]
  land = SOIL * np.exp(rng.uniform(-0.7, 0.7)) * level * np.exp(0.35 * texture)
  lane = np.abs(shapes.saw(line.t, 140) - 70) < 2.5  # a road: smooth, so dark
  return np.where(off > 0, sea, np.where(lane, 0.2 * land, land)).astype(np.float32)


def _ship(x, y, angle, rng):
  length = rng.uniform(26, 62)
  return Thing('ship', x, y, length, rng.uniform(10, 10 + length / 10), angle)


def _berths(rng, ground, line, off, power):
  """Ships along a quay, and along a pier, both about as bright as they are."""
  power[(off < 0) & (off > -rng.uniform(3, 8))] = rng.uniform(0.15, 0.6)
  reach, pier = rng.uniform(50, 80), rng.uniform(-60, 60)
  power[(np.abs(line.t - pier) < 2) & (off >= 0) & (off < reach)] = rng.uniform(0.15, 0.6)
  rows = [(t, 7.5, 0.0) for t in np.arange(-0.6 * ground.size, 0.6 * ground.size, 66)]
  rows += [(pier + side * 9.5, 0.7 * reach, np.pi / 2) for side in (-1, 1)]
  things = []
  for t, d, turn in rows:
    x, y = line.at(t + (0 if turn else rng.uniform(-15, 15)), d)
    one = _ship(x, y, line.angle + turn + np.pi * rng.integers(2), rng)
    if rng.random() < 0.6 and ground.take(one, margin=0):
      things.append(one)
  return things


def _afloat(rng, ground, sea):
  def ship(x, y):
    return _ship(x, y, rng.uniform(-np.pi, np.pi), rng)

  return ground.scatter(rng, sea, int(rng.integers(2, 5)), ship, 8, 3)


def _ashore(rng, ground, land, power, line):
  """Aircraft on a smooth apron, tanks in groups, in two parts of the land."""
  cut = line.t < 0.5 * ground.size * rng.uniform(-0.8, 0.8)
  cut = land & (cut if rng.random() < 0.5 else ~cut)
  apron, yard = cut, land & ~cut
  inner = cv2.erode(apron.astype(np.uint8), np.ones((7, 7))).astype(bool)
  power[inner] = APRON * np.exp(rng.uniform(-1, 0.8))
  usual = rng.uniform(18, 34)

  def aircraft(x, y):
    length, angle = rng.uniform(30, 52), rng.uniform(-np.pi, np.pi)
    return Thing('aircraft', x, y, length, length * rng.uniform(0.8, 0.95), angle)

  def tank(x, y):
    diameter = usual * rng.uniform(0.9, 1.1)
    return Thing('tank', x, y, diameter, diameter)

  things = ground.scatter(rng, inner, int(rng.integers(5, 10)), aircraft, 13, 1)
  return things + ground.scatter(rng, yard, int(rng.integers(3, 8)), tank, 10, 2)


def paint(thing: Thing, rng: np.random.Generator) -> Sprite:
  """Mean intensity of an object's own area; `_glints` adds its strong single scatterers."""
  if thing.name == 'ship':
    level = np.exp(rng.uniform(-2.1, 0.5))
    hold, bridge = level * rng.uniform(0.2, 0.9), rng.uniform(-0.45, 0.2)
    sprite = Sprite(thing, HULL, level).part((-0.44, -0.24, 0.3, 0.24), hold)
    return sprite.part((bridge, -0.42, bridge + 0.16, 0.42), level * 3)
  if thing.name == 'aircraft':
    level = np.exp(rng.uniform(-2.4, -0.9))
    return Sprite(thing, PLANE, level).part((-0.46, -0.06, 0.49, 0.06), level * rng.uniform(0.8, 2))
  sprite = Sprite(thing, DISC, rng.uniform(0.2, 0.6)).part(DISC * 0.84, rng.uniform(0.02, 0.1))
  near = DISC[DISC[:, 0] < -0.2]  # the wall that faces the radar, to the left
  return sprite.part(np.concatenate([near, near[::-1] * 0.72]), rng.uniform(1.0, 2.0))


def _glints(thing, rng, echo):
  """Corner-like parts: deck gear, engines and wing roots, the tank's far edge."""
  if thing.name == 'ship':
    points = rng.uniform((-0.42, -0.22), (0.38, 0.22), (rng.integers(4, 12), 2))
  elif thing.name == 'aircraft':
    points = np.float64(
      [(0.42, 0), (0.3, 0), (-0.44, 0), (-0.3, 0)]
      + 2 * [(0.06, 0.09), (-0.02, 0.2), (-0.1, 0.33), (-0.15, 0.44), (-0.45, 0.15)]
    )
    points[4:9, 1] *= -1
    points = points[rng.random(len(points)) < 0.75]
  else:
    points = np.float64([(0.4, 0.0), (-0.44, 0.0)])
  strengths = rng.exponential(1.0, len(points)) + 0.5
  for (x, y), strength in zip(shapes.to_picture(thing, points), strengths, strict=True):
    echo[round(y), round(x)] += strength


def _gate(thing, rng, canvas):
  """Boarding bridges and carts that touch the aircraft, as bright as it is."""
  for side in (-1, 1):
    if rng.random() < 0.4:
      reach = rng.uniform(0.5, 0.85) * thing.width
      end = np.float64([(rng.uniform(0.1, 0.4), side * reach / 2 / thing.width)])
      x, y = shapes.to_picture(thing, end)[0]
      angle = thing.angle + np.pi / 2 + rng.uniform(-0.3, 0.3)
      bar = Thing('', x, y, reach, rng.uniform(3, 5), angle)
      Sprite(bar, RECTANGLE, np.exp(rng.uniform(-2, -0.3))).paste(canvas, bar)


def _buildings(rng, ground, land, canvas, echo, line):
  """Two bright walls and a shadow behind: as bright as any object, without its form."""

  def house(x, y):
    angle = line.angle + rng.integers(4) * np.pi / 2
    return Thing('', x, y, rng.uniform(14, 46), rng.uniform(10, 24), angle)

  for thing in ground.scatter(rng, land, int(rng.integers(1, 6)), house, 8, 1):
    sprite = Sprite(thing, RECTANGLE, rng.uniform(0.03, 0.12))
    sprite.part((-0.5, -0.5, 0.5, -0.3), rng.uniform(0.4, 1.2))
    sprite.part((-0.5, -0.5, -0.4, 0.5), rng.uniform(0.3, 1.0))
    sprite.paste(canvas, thing)
    x, y = np.int64(shapes.to_picture(thing, np.float64([(-0.45, -0.42)])))[0]
    echo[y, x] += rng.uniform(0, 3)


def _rocks(rng, ground, shallow, canvas):
  def rock(x, y):
    return Thing('', x, y, *rng.uniform(8, 28, 2), rng.uniform(-3, 3))

  for thing in ground.scatter(rng, shallow, int(rng.integers(1, 7)), rock, 6, 1):
    turns = np.sort(rng.uniform(0, 2 * np.pi, 9))
    points = np.stack([np.cos(turns), np.sin(turns)], 1) * rng.uniform(0.2, 0.5, (9, 1))
    Sprite(thing, points, rng.uniform(0.15, 0.7)).paste(canvas, thing)


def _reflectors(rng, ground, echo):
  """Buoys and corner reflectors: single points that are mostly side lobes."""
  for _ in range(rng.integers(0, 5)):
    x, y = rng.integers(6, ground.size - 6, 2)
    if not ground.taken[y, x]:
      echo[y, x] += rng.uniform(4, 14)


def impulse_response(rng: np.random.Generator) -> np.ndarray:
  """That of range or azimuth [41], a windowed sinc."""
  width = rng.uniform(1.1, 1.7)  # of the main lobe, px
  taps = np.arange(-20, 21)
  return np.float32(np.sinc(taps / width) * np.hamming(41) ** rng.uniform(0.0, 0.4))


def _focus(rng, power, echo):
  """Complex echoes through the impulse response, multi-looked, as amplitude in 8 bits."""
  looks = int(rng.choice((1, 1, 2, 3)))
  response = impulse_response(rng)
  unit = response / np.sqrt((response**2).sum())  # keeps the mean intensity
  steady = cv2.sepFilter2D(echo, -1, response, response, borderType=cv2.BORDER_CONSTANT)
  total = np.zeros_like(power)
  root = np.sqrt(power / 2)
  for _ in range(looks):
    field = rng.standard_normal((*power.shape, 2), np.float32) * root[..., None]
    field = cv2.sepFilter2D(field, -1, unit, unit, borderType=cv2.BORDER_REFLECT)
    total += (field[..., 0] + steady) ** 2 + field[..., 1] ** 2
  amplitude = np.sqrt(total / looks) * rng.uniform(190, 280)
  return np.clip(amplitude, 0, 255).astype(np.uint8)
