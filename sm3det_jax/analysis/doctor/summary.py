"""What is in a data set, in numbers."""

import collections

import numpy as np

from sm3det_jax.analysis.doctor.dataset import UNKNOWN, Dataset

SIDES = (0, 4, 8, 16, 32, 64, 128, 256, 512)  # px, where the bins of sides begin
RATIOS = (1, 1.5, 2, 3, 5, 8, 13, 25)
ANGLES = tuple(range(-90, 90, 15))  # degrees
COUNTS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SPREAD = (5, 50, 95)  # percentiles that describe a class


def summary(d: Dataset) -> dict:
  """Counts and distributions of a data set, of plain numbers and texts (they go into JSON)."""
  return dict(
    name=d.name,
    box=d.box,
    splits=_splits(d),
    pixels=_pixels(d),
    sizes=_sizes(d),
    classes=_classes(d),
    histograms=_histograms(d),
  )


def _splits(d):
  counts, found = d.counts(), {}
  for split in reversed(d.splits):  # training first
    mine = np.array([i.split == split for i in d.images])
    found[split] = dict(
      images=int(mine.sum()),
      unreadable=sum(i.look is None for i in d.images if i.split == split),
      without_objects=int((counts[mine] == 0).sum()),
      objects=int(counts[mine].sum()),
    )
  return found


def _pixels(d):
  """A row for each type and number of bands, the most frequent first."""
  kinds = collections.defaultdict(list)
  for image in d.images:
    if image.look:
      kinds[image.look.dtype, image.look.bands].append(image.look)
  rows = []
  for (dtype, bands), looks in sorted(kinds.items(), key=lambda kind: -len(kind[1])):
    weight = np.array([x.height * x.width for x in looks], float)[:, None]
    means, stds = (np.stack([getattr(x, key) for x in looks]) for key in ('mean', 'std'))
    mean = (weight * means).sum(0) / weight.sum()
    square = (weight * (stds**2 + means**2)).sum(0) / weight.sum()
    rows.append(
      dict(
        dtype=dtype,
        bands=bands,
        images=len(looks),
        low=min(x.low for x in looks),
        high=max(x.high for x in looks),
        mean=_rounded(mean),
        std=_rounded(np.sqrt(np.maximum(square - mean**2, 0))),
      )
    )
  return rows


def _sizes(d):
  """{'height', 'width': smallest, median, largest}."""
  sizes = d.sizes()
  sizes = sizes[sizes[:, 0] > 0]
  if not len(sizes):
    return {}
  three = np.stack([sizes.min(0), np.median(sizes, 0).astype(int), sizes.max(0)])
  return dict(height=three[:, 0].tolist(), width=three[:, 1].tolist())


def _classes(d):
  """{class: objects of each split, percentiles of the root of the area and of length / width}."""
  if not d.objects:
    return {}
  counts, label, found = d.class_counts(), d.objects['label'], {}
  for k, name in enumerate(d.classes):
    mine = d.sound & (label == k)
    found[name] = dict(
      objects={split: int(n[k]) for split, n in counts.items()},
      difficult=int((d.objects['difficult'] & (label == k)).sum()),
      side=_percentiles(np.sqrt(d.sides[mine].prod(1))),
      ratio=_percentiles(_ratios(d.sides[mine])),
    )
  if (label == UNKNOWN).any():
    names = collections.Counter(d.unknown.values())
    found['(nobody knows)'] = dict(objects={}, difficult=0, names=dict(names))
  return found


def _histograms(d):
  """{title: {bin: count}}."""
  height, width = d.sizes().T
  found = {}
  if d.objects and d.sound.any():
    sides = d.sides[d.sound]
    found['Objects by the root of their area, px'] = _histogram(np.sqrt(sides.prod(1)), SIDES)
    found['Objects by length / width'] = _histogram(_ratios(sides), RATIOS)
    if d.box == 'obb':
      degrees = np.degrees(d.objects['boxes'][d.sound, 4])
      found['Objects by angle (le90), degrees'] = _histogram(degrees, ANGLES, 90)
    found['Images by number of objects'] = _histogram(d.counts(), COUNTS)
  longest = np.maximum(height, width)
  longest = longest[longest > 0]
  if len(longest):
    steps = np.unique(2 ** np.floor(np.log2(longest)).astype(int)).tolist()
    found['Images by longest side, px'] = _histogram(longest, steps, 2 * steps[-1])
  return found


def _histogram(values, starts, end=None):
  """{'from – to': count}, without empty bins at both ends."""
  which = np.searchsorted(starts, values, side='right') - 1
  counts = np.bincount(np.maximum(which, 0), minlength=len(starts))
  names = bins(starts, end)
  there = np.flatnonzero(counts)
  return {names[k]: int(counts[k]) for k in range(there.min(), there.max() + 1)}


def bins(starts, end=None) -> list[str]:
  """Names of the bins that begin at `starts`; what lies in one is less than its end."""
  ends = [*starts[1:], end]
  return [f'{a:g} –' + ('' if b is None else f' {b:g}') for a, b in zip(starts, ends, strict=True)]


def _ratios(sides):
  return sides.max(1) / sides.min(1)


def _percentiles(values):
  return _rounded(np.percentile(values, SPREAD)) if len(values) else []


def _rounded(values):
  return [float(f'{v:.5g}') for v in np.atleast_1d(values)]
