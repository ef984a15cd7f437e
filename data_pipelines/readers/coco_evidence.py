"""What the boxes of COCO files are, told by all files of a data set together."""

import math
import statistics
from collections.abc import Sequence

from data_pipelines.readers.coco_file import Content, Object
from data_pipelines.readers.skipped import Skipped

MANY = 10  # boxes, from which on their places alone are evidence


def angle_unit(contents: Sequence[tuple[str, Content]], skipped: Skipped) -> str:
  """'degree' if an angle of five numbers is beyond 2 pi, else 'radian'.

  Args:
    contents: (name, what it has) of every file.
    skipped: gets the evidence as a note.
  """
  of = lambda c: [abs(o.box[4]) for o in c.objects if len(o.box) == 5]
  return unit_of([(max(found), name) for name, c in contents if (found := of(c))], skipped)


def unit_of(
  angles: Sequence[tuple[float, object]], skipped: Skipped, usual: float = math.pi / 2
) -> str:
  """'degree' if any angle is beyond 2 pi, else 'radian'.

  Args:
    angles: (largest angle, where) of every file or folder that has any.
    skipped: gets the evidence as a note, and another one where files seem to differ.
    usual: radians that the format's angles reach; what is between it and 2 pi is in doubt.
  """
  if not angles:
    return 'radian'
  largest, where = max(angles, key=lambda pair: pair[0])
  unit = 'degree' if largest > 2 * math.pi + 1e-3 else 'radian'
  sure = unit == 'degree' or largest <= usual + 1e-3
  doubt = '' if sure else '; a guess: --angle=degree or --angle=radian says it'
  skipped.note(f'angles are read as {unit}s: the largest is {largest:.4g}, in {where}{doubt}')
  for other, place in angles if unit == 'degree' else ():
    if 0 < other <= usual + 1e-3:
      skipped.note(
        f'those in {place} are at most {other:.4g}: if they are radians, prepare them as a source '
        'of their own'
      )
  return unit


def are_corners(contents: Sequence[tuple[str, Content]], skipped: Skipped) -> bool:
  """Whether the four numbers of all boxes are x1, y1, x2, y2, by mistake.

  They are if all are proper corners and every outline and area that tells says so; where none
  tells, if many boxes leave their images otherwise, and none does as corners.

  Args:
    contents: (name, what it has) of every file.
    skipped: gets a note where the places of few boxes are in doubt.
  """
  sizes = [{i.id: i.size for i in c.images} for _, c in contents]
  four = [
    (o, size.get(o.image))
    for (_, c), size in zip(contents, sizes, strict=True)
    for o in c.objects
    if len(o.box) == 4
  ]
  if not four or not all(o.box[2] > o.box[0] and o.box[3] > o.box[1] for o, _ in four):
    return False
  votes = {vote for o, _ in four if (vote := _vote(o))}
  if votes:
    return votes == {'corners'}
  known = [(o.box, size) for o, size in four if size]
  inside = all(x2 <= w + 1 and y2 <= h + 1 for (_, _, x2, y2), (h, w) in known)
  beyond = [x + bw > w + 1 or y + bh > h + 1 for (x, y, bw, bh), (h, w) in known]
  if not known or not inside or statistics.mean(beyond) <= 0.2:
    return False
  if len(known) < MANY:
    skipped.note(
      f'{sum(beyond)} of {len(known)} boxes leave their images; as x1, y1, x2, y2 none would: '
      'look at them'
    )
  return len(known) >= MANY


def _vote(o: Object) -> str | None:
  """Which reading outline or area of an object tell, None if neither does."""
  a, b, c, d = o.box
  if o.points is not None:
    low, high = o.points.min(0), o.points.max(0)
    far = [
      max(abs(p - q) for p, q in zip((*low, *high), box, strict=True))
      for box in ((a, b, c, d), (a, b, a + c, b + d))
    ]
    if min(far) < 2 < max(far):
      return 'corners' if far[0] < far[1] else 'sides'
  if o.area is None:
    return None
  near = [abs(o.area - area) <= 0.02 * max(o.area, area) for area in ((c - a) * (d - b), c * d)]
  return {(True, False): 'corners', (False, True): 'sides'}.get(tuple(near))


def too_large(content: Content) -> set[str]:
  """Places of objects whose area is beyond their box, unless most of the file's are.

  Then they are in another unit.
  """
  told = [o for o in content.objects if o.area is not None and len(o.box) == 4]
  found = {o.place for o in told if o.area > 1.05 * (o.box[2] + 2) * (o.box[3] + 2)}
  return found if 2 * len(found) < len(told) else set()
