"""What may be wrong with a set's classes as a whole: functions from a Dataset to rows."""

import collections
from collections.abc import Iterator

import numpy as np

from sm3det_jax.analysis.doctor.dataset import TESTED, Dataset
from sm3det_jax.analysis.doctor.rows import Row

FEW = 10  # objects to train on
FLAT = 0.01  # rad from a right angle
ENOUGH = 20  # oriented boxes, some of which should have an angle


def untaught(d: Dataset) -> Iterator[Row]:
  counts = d.class_counts()
  if 'train' in counts:
    for k, name in enumerate(d.classes):
      tested = {s: counts[s][k] for s in TESTED if s in counts and counts[s][k]}
      if tested and not counts['train'][k]:
        text = ', '.join(f'{n} objects in {s}' for s, n in tested.items())
        yield Row(-1, f'{name}: {text}, none in train')


def rare(d: Dataset) -> Iterator[Row]:
  train = d.class_counts().get('train', ())
  for k in np.argsort(train, kind='stable').tolist():
    if train[k] < FEW:
      yield Row(-1, f'{d.classes[k]}: {train[k]} objects in train')


def like_names(d: Dataset) -> Iterator[Row]:
  names = collections.defaultdict(list)
  for name in d.classes:
    names[''.join(c for c in name.casefold() if c.isalnum()).removesuffix('s')].append(name)
  for like in names.values():
    if len(like) > 1:
      yield Row(-1, f'{", ".join(like)}: one class? --aliases={like[1]}={like[0]} makes it one')


def flat_angles(d: Dataset) -> Iterator[Row]:
  if d.objects and d.box == 'obb' and d.sound.sum() >= ENOUGH:
    angle = d.objects['boxes'][d.sound, 4]
    off = np.abs(angle - np.round(angle / (np.pi / 2)) * (np.pi / 2))
    if (off < FLAT).all():
      yield Row(-1, f'all {len(off):,} boxes stand upright: horizontal labels, or degrees lost?')
