"""The table of what may be wrong with a data set: a new kind is one function and one row."""

import collections
from collections.abc import Callable, Iterable
from typing import NamedTuple

from sm3det_jax.analysis.doctor import class_findings as of_classes
from sm3det_jax.analysis.doctor import image_findings as of_images
from sm3det_jax.analysis.doctor import object_findings as of_objects
from sm3det_jax.analysis.doctor.dataset import Dataset
from sm3det_jax.analysis.doctor.rows import Row

SEVERITIES = ('error', 'warning', 'note')


class Kind(NamedTuple):
  """A row of `KINDS`.

  Attributes:
    severity: 'error': spoils training or its scores; 'warning': is probably wrong; 'note': to know.
    title: for people.
    find: Dataset -> rows, the worst first; its name is the kind's.
    out: whether the quarantine list has its images, or None: as comments, for people to judge.
  """

  severity: str
  title: str
  find: Callable[[Dataset], Iterable[Row]]
  out: bool | None = False

  @property
  def name(self) -> str:
    return self.find.__name__


KINDS = (
  Kind('error', 'images that cannot be read', of_images.unreadable, True),
  Kind('error', 'images whose labels are of another size or view', of_images.misfit, None),
  Kind('error', 'images of one value', of_images.one_value, True),
  Kind('error', 'copies of an image in two splits', of_images.split_copies, True),
  Kind('error', 'one scene in two splits', of_images.split_scenes, None),
  Kind('error', 'images of another type of pixels', of_images.types, None),
  Kind('error', 'objects of a class that nobody knows', of_objects.unknown_class),
  Kind('error', 'classes that are tested but not trained', of_classes.untaught),
  Kind('warning', 'images of two splits that look alike', of_images.split_twins, None),
  Kind('warning', 'boxes that are not finite', of_objects.not_finite),
  Kind('warning', 'boxes too thin to be kept', of_objects.thin),
  Kind('warning', 'boxes outside of their image', of_objects.outside),
  Kind('warning', 'boxes mostly outside of their image', of_objects.mostly_outside),
  Kind('warning', 'objects of two classes in one place', of_objects.two_classes, None),
  Kind('warning', 'objects labelled twice', of_objects.twice, None),
  Kind('warning', 'quadrilaterals that cross themselves', of_objects.crossing),
  Kind('warning', 'boxes as large as their image', of_objects.whole_image, None),
  Kind('warning', 'oriented boxes without angles', of_classes.flat_angles),
  Kind('warning', 'classes of nearly the same name', of_classes.like_names),
  Kind('warning', 'images of one split that look alike', of_images.twins, None),
  Kind('warning', 'images with a range unlike the others', of_images.dark_range, None),
  Kind('warning', 'images mostly without data', of_images.no_data, None),
  Kind('note', 'images of another number of bands', of_images.bands),
  Kind('note', 'objects of a size unlike their class', of_objects.odd_size),
  Kind('note', 'objects much longer than wide', of_objects.elongated),
  Kind('note', 'classes with few objects to train on', of_classes.rare),
  Kind('note', 'images without objects', of_images.empty),
)  # fmt: skip


class Finding(NamedTuple):
  """A kind with its rows."""

  kind: Kind
  rows: list[Row]


def find(dataset: Dataset) -> list[Finding]:
  """The kinds that have rows, the grave ones first."""
  found = [Finding(kind, list(kind.find(dataset))) for kind in KINDS]
  return sorted((f for f in found if f.rows), key=lambda f: SEVERITIES.index(f.kind.severity))


def images_to_leave_out(found: Iterable[Finding]) -> dict[int, tuple[bool, list[str]]]:
  """{index of an image: (whether it is clear, why)} for the quarantine list."""
  why, clear = collections.defaultdict(list), collections.defaultdict(bool)
  for finding in found:
    if finding.kind.out is False:
      continue
    for row in finding.rows:
      if row.image >= 0:
        clear[row.image] |= bool(finding.kind.out)
        if row.text not in why[row.image]:
          why[row.image].append(row.text)
  return {image: (clear[image], texts) for image, texts in sorted(why.items())}
