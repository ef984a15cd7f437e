"""What may be wrong with images: functions from a Dataset to rows, the worst first."""

import collections
from collections.abc import Iterator

import numpy as np

from data_pipelines import tiling
from sm3det_jax.analysis.doctor.dataset import Dataset
from sm3det_jax.analysis.doctor.duplicates import COPY
from sm3det_jax.analysis.doctor.pixels import likeness
from sm3det_jax.analysis.doctor.rows import Row

FILLED = 0.5  # share of an image that should have data
DARKER = 16  # times that an image's largest value may be below the median of its set's


def unreadable(d: Dataset) -> Iterator[Row]:
  for k, image in enumerate(d.images):
    if image.look is None:
      yield Row(k, image.problem)


def misfit(d: Dataset) -> Iterator[Row]:
  for k, image in enumerate(d.images):
    if image.look and image.problem:
      yield Row(k, image.problem)


def one_value(d: Dataset) -> Iterator[Row]:
  for k, look in _looks(d):
    if look.low == look.high:
      yield Row(k, f'every pixel is {look.low:g}')


def split_copies(d: Dataset) -> Iterator[Row]:
  """The same picture in two splits, perhaps compressed or resized anew, mirrored or turned."""
  yield from _twins(d, d.twins[1], True)


def split_twins(d: Dataset) -> Iterator[Row]:
  """Pictures that look alike in two splits, such as neighbouring frames of a video."""
  yield from _twins(d, d.twins[1], False)


def twins(d: Dataset) -> Iterator[Row]:
  yield from _twins(d, d.twins[0], True)
  yield from _twins(d, d.twins[0], False)


def _twins(d, earlier, copies):
  """Rows of copies or of the others, those that look most alike first."""
  found = []
  for k in np.flatnonzero(earlier >= 0).tolist():
    other = int(earlier[k])
    a, b = d.images[k].look, d.images[other].look
    alike, turn = (2.0, '') if a.checksum == b.checksum else likeness(a, b)
    if (alike >= COPY) == copies:
      text = 'has the pixels of' if alike == 2 else 'copies' if copies else 'looks like'
      text = f'{turn}, {text}' if turn else text
      place = f'{d.images[other].id} of split {d.images[other].split}'
      found.append((-alike, Row(k, f'{text} {place}', other=other)))
  yield from (row for _, row in sorted(found, key=lambda pair: pair[0]))


def split_scenes(d: Dataset) -> Iterator[Row]:
  """Scenes in two splits, told by the names of patches that were cut before."""
  scenes, patches = collections.defaultdict(dict), set()
  for k, image in enumerate(d.images):
    patch = tiling.parse_patch(image.id)
    scenes[patch[0] if patch else image.id].setdefault(image.split, k)
    patches |= {patch[0]} if patch else set()
  for scene in sorted(patches):
    first, *others = scenes[scene].values()
    for k in others:
      text = f'is of the scene {scene}, as {d.images[first].id} of split {d.images[first].split}'
      yield Row(k, text, other=first)


def types(d: Dataset) -> Iterator[Row]:
  yield from _unlike(d, lambda look: look.dtype, '{} pixels; most images have {}')


def bands(d: Dataset) -> Iterator[Row]:
  yield from _unlike(d, lambda look: look.bands, '{} bands; most images have {}')


def _unlike(d, key, text):
  counts = collections.Counter(key(look) for _, look in _looks(d))
  for k, look in _looks(d):
    ((most, _),) = counts.most_common(1)
    if key(look) != most:
      yield Row(k, text.format(key(look), most))


def dark_range(d: Dataset) -> Iterator[Row]:
  """8 bits among 16, reflectance among digital numbers: the same scene on another scale."""
  looks = [(k, look) for k, look in _looks(d) if look.high > look.low]
  if looks:
    usual = float(np.median([look.high for _, look in looks]))
    for k, look in sorted(looks, key=lambda pair: pair[1].high):
      if look.high * DARKER < usual:
        yield Row(k, f'values up to {look.high:g}; half of the images reach {usual:g}')


def no_data(d: Dataset) -> Iterator[Row]:
  for k, look in sorted(_looks(d), key=lambda pair: pair[1].filled):
    if look.filled < FILLED and look.low < look.high:
      yield Row(k, f'{100 * (1 - look.filled):.0f} % of the pixels are 0 or not finite')


def empty(d: Dataset) -> Iterator[Row]:
  if d.box != 'image':
    for k in np.flatnonzero(d.counts() == 0).tolist():
      yield Row(k, 'no object')


def _looks(d):
  return [(k, image.look) for k, image in enumerate(d.images) if image.look]
