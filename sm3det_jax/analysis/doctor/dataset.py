"""What the doctor keeps of a data set: a row an image and a row an object, no pixels."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from data_pipelines import boxes as box_lib
from data_pipelines.builders import scan
from data_pipelines.readers import Skipped
from sm3det_jax.analysis.doctor import duplicates, overlaps
from sm3det_jax.analysis.doctor import pixels as pixels_lib

UNKNOWN = -1  # label of an object of a class that nobody knows
LEAST_OVERLAP = 0.5  # IoU of the pairs that are listed
TESTED = ('test', 'val')  # splits that come first: of twins, the copy in another one is left out


class Image(NamedTuple):
  """One image: where it is, what it looks like, and why it cannot be read or used."""

  split: str
  id: str
  file: str
  look: pixels_lib.Look | None
  problem: str = ''


@dataclasses.dataclass(frozen=True)
class Dataset:
  """What is kept of a data set: small rows, no pixels.

  Attributes:
    name, box, classes: of the data set.
    images: those of splits that are tested first.
    objects: arrays with a row an object, those of an image together: `image` (index), `row` (its
      number among the image's), `label` (`UNKNOWN` for a class that nobody knows), `boxes`,
      `polygons`, `difficult`. {} without boxes. Objects of ignored classes and
      regions to ignore are not there.
    unknown: {index of an object: its class as the file spells it}, of those that nobody knows.
    skipped: what readers and `builders.scan` leave out or mend; None for a prepared set.
    read: index of an image -> its pixels [H, W, bands], once more.
  """

  name: str
  box: str
  classes: tuple[str, ...]
  images: list[Image]
  objects: dict[str, np.ndarray]
  unknown: dict[int, str]
  skipped: Skipped | None
  read: Callable[[int], np.ndarray]

  @property
  def splits(self) -> list[str]:
    return list(dict.fromkeys(i.split for i in self.images))

  def sizes(self) -> np.ndarray:
    """(height, width) of each image, int [n, 2]; 0 for those that cannot be read."""
    found = [(i.look.height, i.look.width) if i.look else (0, 0) for i in self.images]
    return np.array(found, int).reshape(-1, 2)

  def counts(self) -> np.ndarray:
    """Objects of each image, int [n]."""
    image = self.objects.get('image', np.zeros(0, int))
    return np.bincount(image, minlength=len(self.images))

  def class_counts(self) -> dict[str, np.ndarray]:
    """{split: objects of each class}."""
    found = {s: np.zeros(len(self.classes), int) for s in self.splits}
    if self.objects:
      split = np.array([i.split for i in self.images])[self.objects['image']]
      for s in found:
        mine = self.objects['label'][(split == s) & (self.objects['label'] != UNKNOWN)]
        found[s] = np.bincount(mine, minlength=len(self.classes))
    return found

  def class_of(self, k: int) -> str:
    """Name of the class of an object."""
    label = self.objects['label'][k]
    return self.unknown[k] if label == UNKNOWN else self.classes[label]

  @functools.cached_property
  def sides(self) -> np.ndarray:
    """Width and height of each box, float [n, 2]."""
    boxes = self.objects['boxes'].astype(np.float64)
    return boxes[:, 2:] - boxes[:, :2] if self.box == 'hbb' else boxes[:, 2:4]

  @functools.cached_property
  def envelopes(self) -> np.ndarray:
    """Enclosing horizontal boxes, float [n, 4]."""
    corners = box_lib.to_polygon(self.objects['boxes']).reshape(-1, 4, 2)
    return np.concatenate([corners.min(1), corners.max(1)], -1)

  @functools.cached_property
  def finite(self) -> np.ndarray:
    """Which boxes are finite, bool [n]."""
    both = [self.objects[key] for key in ('boxes', 'polygons')]
    return np.logical_and(*(np.isfinite(a).all(1) for a in both))

  @functools.cached_property
  def sound(self) -> np.ndarray:
    """Which boxes are finite and as large as `prepare` wants them, bool [n]."""
    return self.finite & (self.sides >= scan.MIN_SIDE[self.box]).all(1)

  @functools.cached_property
  def twins(self) -> tuple[np.ndarray, np.ndarray]:
    """Index of the earlier image that looks most like each, in its own split and in another.

    Mirrored and turned ones count.
    """
    seen = [k for k, image in enumerate(self.images) if image.look]
    found = np.full((2, len(self.images)), -1)
    if seen:
      looks = [self.images[k].look for k in seen]
      split = np.array([self.splits.index(self.images[k].split) for k in seen])
      pairs = duplicates.closest(
        np.stack([x.hashes for x in looks]), np.stack([x.thumbnail for x in looks]), split
      )
      for row, earlier in zip(found, pairs, strict=True):
        row[seen] = np.where(earlier >= 0, np.array(seen)[earlier], -1)
    return found[0], found[1]

  @functools.cached_property
  def overlaps(self) -> tuple[np.ndarray, np.ndarray]:
    """(pairs of objects [k, 2], their IoU [k]); without difficult ones, which may lie anywhere."""
    rows = np.flatnonzero(self.sound & ~self.objects['difficult'])
    pairs, ious = overlaps.pairs(
      self.objects['boxes'][rows], self.objects['image'][rows], LEAST_OVERLAP
    )
    return rows[pairs], ious
