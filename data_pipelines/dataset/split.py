"""Images of a data set divided into splits: scenes stay whole, classes are spread evenly."""

import collections
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data_pipelines import tiling
from data_pipelines.errors import UserError
from data_pipelines.raw import Collected

PASSES = 20  # over the scenes; a few are enough


def scene_of(pattern: str | None = None) -> Callable[[str], str]:
  """The function image id -> its scene.

  Args:
    pattern: regular expression with one group, the scene; by default the image that a patch
      `<image>__<rate>__<x>___<y>` is of, and else the image itself.

  Raises:
    UserError: no such expression; the function: an id that it does not match.
  """
  if pattern is None:
    return lambda id: (tiling.parse_patch(id) or (id,))[0]
  try:
    expression = re.compile(pattern)
  except re.error as error:
    raise UserError(f'--scene={pattern}: {error}') from None
  if expression.groups != 1:
    raise UserError(f'--scene={pattern}: expected one group in brackets, the scene')

  def scene(id):
    match = expression.search(id)
    if not (match and match[1]):
      raise UserError(f'--scene={pattern} finds no scene in the name {id}')
    return match[1]

  return scene


def divide(
  c: Collected,
  fractions: Mapping[str, float],
  *,
  scene: Callable[[str], str],
  of: Sequence[str] = (),
  seed: int = 0,
) -> tuple[Collected, dict]:
  """The same data set with other splits, and {split: scenes} as a record.

  Args:
    c: what `prepare.collect` found.
    fractions: {split: share of the images}, summing to 1.
    scene: image id -> scene, as `scene_of` makes it.
    of: splits to divide; the others stay. By default the only one.
    seed: another one gives another division.

  Raises:
    UserError: fractions that are none; a split that is not there, meets another's name, or would
      stay empty; an id in two splits to divide.
  """
  if not fractions or min(fractions.values()) <= 0 or not math.isclose(sum(fractions.values()), 1):
    raise UserError(f'--fractions: expected positive shares that sum to 1, not {dict(fractions)}')
  if not of and len(c.annotations) > 1:
    raise UserError(
      f'the source has the splits {", ".join(c.annotations)}; say with --of which to divide, such '
      f'as --of={next(iter(c.annotations))} (the others stay as they are)'
    )
  of = tuple(of) or tuple(c.annotations)
  if unknown := set(of) - set(c.annotations):
    raise UserError(f'--of={min(unknown)}: the source has the splits {", ".join(c.annotations)}')
  kept = {s: listed for s, listed in c.annotations.items() if s not in of}
  if twice := set(kept) & set(fractions):
    raise UserError(f'--fractions: split {min(twice)!r} is there and not to be divided')
  pool = {}
  for a in (a for s in of for a in c.annotations[s]):
    if a.id in pool:
      raise UserError(f'two images have the name {a.id}: {pool[a.id].image} and {a.image}')
    pool[a.id] = a
  scenes = collections.defaultdict(list)
  for id in sorted(pool):
    scenes[scene(id)].append(id)
  counts = np.zeros((len(scenes), len(c.classes) + 1), np.int64)  # images last
  for row, ids in zip(counts, scenes.values(), strict=True):
    for id in ids:
      a = pool[id]
      labels = [c.label(name, a.labels or a.image) for name in a.names]
      np.add.at(row, [k for k in labels if k is not None], 1)
    row[-1] = len(ids)
  chosen = stratify(counts, list(fractions.values()), seed)
  found, record = {}, {}
  for k, split in enumerate(fractions):
    record[split] = [s for s, at in zip(scenes, chosen, strict=True) if at == k]
    if not record[split]:
      raise UserError(f'split {split!r} would be empty: there are {len(scenes)} scenes in all')
    found[split] = [pool[id] for s in record[split] for id in scenes[s]]
  return c._replace(annotations=found | kept), record


def stratify(counts: np.ndarray, fractions: Sequence[float], seed: int) -> np.ndarray:
  """Split of each scene; int [scenes].

  Iterative stratification (after Sechidis et al. 2011): the class with the fewest objects left
  first, its scenes from rich to poor, each to the split that comes nearest to what it wants by it,
  over all classes and the images: least squares of shares. Scenes without objects come last.
  Then single scenes move as long as that brings all splits nearer.

  Args:
    counts: [scenes, classes + 1] objects of each class, and last the images.
    fractions: of each split.
    seed: of the order of scenes that are alike.
  """
  rng = np.random.default_rng(seed)
  order = rng.permutation(len(counts))
  shares = counts / np.maximum(counts.sum(0), 1)  # [scenes, classes + 1]
  wanted = np.outer(fractions, counts.sum(0) > 0)  # [splits, classes + 1], of all shares
  chosen = np.full(len(counts), -1)

  def assign(scene):  # |wanted - share|^2 shrinks most where their product is largest
    gain = (wanted @ shares[scene]).round(12)  # alike but for the last bits: by chance
    chosen[scene] = np.lexsort((rng.random(len(gain)), gain))[-1]
    wanted[chosen[scene]] -= shares[scene]

  while True:
    left = counts[chosen < 0, :-1].sum(0)
    if not left.any():
      break
    column = np.where(left > 0, left, np.iinfo(np.int64).max).argmin()
    scenes = [s for s in order if chosen[s] < 0 and counts[s, column]]
    for scene in sorted(scenes, key=lambda s: -counts[s, column]):
      assign(scene)
  for scene in sorted((s for s in order if chosen[s] < 0), key=lambda s: -counts[s, -1]):
    assign(scene)
  for _ in range(PASSES):
    before = chosen.copy()
    for scene in order:
      share, old = shares[scene], chosen[scene]
      wanted[old] += share
      chosen[scene] = new = (wanted @ share).argmax()
      wanted[new] -= share
    if (chosen == before).all():
      break
  return chosen


def note(record: dict, **arguments) -> dict[str, str]:
  """The file that says how a data set was divided."""
  text = json.dumps(arguments | {'scenes': record}, indent=1) + '\n'
  return {'split.json': text}
