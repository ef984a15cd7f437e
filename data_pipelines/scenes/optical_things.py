"""What stands in optical scenes, seen from above: vehicles, planes, ships, tanks, roofs, trees."""

import numpy as np

from data_pipelines.scenes.shapes import DISC, HULL, PLANE, RECTANGLE, Sprite, Thing

PAINTS = (
  (225, 225, 222), (200, 203, 205), (150, 153, 156), (92, 96, 102), (48, 50, 54),
  (160, 38, 34), (44, 70, 132), (190, 172, 130), (212, 176, 60),
)  # fmt: skip
GLASS = (34, 40, 48)


def vehicle(thing: Thing, rng) -> Sprite:
  paint = np.float32(PAINTS[rng.integers(len(PAINTS))]) * rng.uniform(0.85, 1.1)
  sprite = Sprite(thing, RECTANGLE, paint)
  sprite.part((-0.5, -0.5, -0.46, 0.5), paint * 0.6).part((0.45, -0.5, 0.5, 0.5), paint * 0.7)
  sprite.part([(0.12, -0.34), (0.26, -0.42), (0.26, 0.42), (0.12, 0.34)], GLASS)
  sprite.part([(-0.4, -0.4), (-0.29, -0.34), (-0.29, 0.34), (-0.4, 0.4)], GLASS)
  sprite.part((-0.26, -0.36, 0.1, 0.36), np.minimum(paint * 1.12 + 6, 255))
  return sprite.shade(rng.uniform(-0.12, 0.12))


def plane(thing: Thing, rng) -> Sprite:
  tones = ((236, 238, 240), (236, 238, 240), (150, 154, 158), (92, 98, 100), (104, 104, 82))
  white = np.float32(tones[rng.integers(len(tones))]) * rng.uniform(0.86, 1.04)
  sprite = Sprite(thing, PLANE, white * rng.uniform(0.7, 0.95))
  sprite.part((-0.46, -0.065, 0.49, 0.065), white)
  trim = np.float32(PAINTS[rng.integers(3, len(PAINTS))])
  sprite.part((-0.5, -0.03, -0.34, 0.03), trim)
  for side in (-1, 1):
    for v in (0.2, 0.34)[: rng.integers(1, 3)]:
      u = 0.12 - 0.5 * v
      sprite.part((u - 0.04, side * v - 0.025, u + 0.06, side * v + 0.025), white * 0.55)
  return sprite.part((0.42, -0.04, 0.45, 0.04), GLASS).shade(rng.uniform(-0.08, 0.08))


def ship(thing: Thing, rng) -> Sprite:
  decks = ((112, 52, 42), (84, 88, 92), (58, 78, 72), (150, 142, 130), (40, 48, 60))
  deck = np.float32(decks[rng.integers(len(decks))])
  sprite = Sprite(thing, HULL, deck * 0.62)
  inner = HULL * (0.95, 0.76)
  sprite.part(inner, deck * rng.uniform(0.9, 1.15))
  if rng.random() < 0.55:  # hatches or containers
    bays = rng.integers(3, 6)
    for k in range(bays):
      u = -0.26 + 0.56 * k / bays
      cargo = np.float32(PAINTS[rng.integers(len(PAINTS))]) * 0.85
      sprite.part((u, -0.3, u + 0.4 / bays, 0.3), cargo)
  else:
    sprite.part((-0.24, -0.03, 0.36, 0.03), deck * 1.35)
  sprite.part((-0.45, -0.36, -0.31, 0.36), (232, 232, 228))
  return sprite.part((-0.4, -0.1, -0.36, 0.1), (70, 60, 52))


def tank(thing: Thing, rng) -> Sprite:
  roof = np.float32((226, 224, 216)) * rng.uniform(0.35, 1.06)
  sprite = Sprite(thing, DISC, roof * 0.72)
  inside = roof * (rng.uniform(0.5, 0.75) if rng.random() < 0.3 else 1.0)  # floating roof
  sprite.part(DISC * 0.9, inside).part(DISC * 0.14, roof * 0.8)
  turn = rng.uniform(0, 2 * np.pi) + np.float64((0, 0.12, 0.12, 0))
  stair = np.stack([np.cos(turn), np.sin(turn)], 1) * [[0.1], [0.1], [0.45], [0.45]]
  return sprite.part(stair, roof * 0.68)


def roof(thing: Thing, rng) -> Sprite:
  tiles = ((128, 82, 66), (108, 106, 104), (150, 138, 122), (84, 82, 86))
  tile = np.float32(tiles[rng.integers(len(tiles))])
  sprite = Sprite(thing, RECTANGLE, tile * rng.uniform(0.85, 1.15))
  sprite.part((-0.5, 0.0, 0.5, 0.5), tile * 0.72).part((-0.5, -0.03, 0.5, 0.03), tile * 1.2)
  for u in np.arange(-0.46, 0.5, 0.08):
    sprite.part((u, -0.5, u + 0.01, 0.0), tile * 0.92)
  return sprite.part((0.2, -0.3, 0.28, -0.2), (70, 66, 64))


def crown(thing: Thing, rng) -> Sprite:
  turns = np.linspace(0, 2 * np.pi, 14, endpoint=False)
  points = np.stack([np.cos(turns), np.sin(turns)], 1) * rng.uniform(0.36, 0.5, (14, 1))
  green = np.float32((52, 70, 38)) * rng.uniform(0.6, 1.15)
  sprite = Sprite(thing, points, green)
  for u, v in rng.uniform(-0.33, 0.33, (7, 2)):
    sprite.part(DISC * 0.22 + (u, v), green * rng.uniform(0.65, 1.5))
  return sprite


SPRITES = {
  'plane': plane, 'ship': ship, 'small-vehicle': vehicle, 'storage-tank': tank,
  'roof': roof, 'tree': crown,
}  # fmt: skip
SOLIDS = {  # outline and height above ground, for the shadows
  'plane': (PLANE, 4.0), 'ship': (HULL, 2.0), 'small-vehicle': (RECTANGLE, 2.0),
  'storage-tank': (DISC, 5.0), 'roof': (RECTANGLE, 6.0), 'tree': (DISC * 0.9, 3.5),
}  # fmt: skip
