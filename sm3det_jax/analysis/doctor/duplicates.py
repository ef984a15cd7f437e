"""Images that look the same, found without comparing all pairs."""

import numpy as np

DIFFERENT = (
  7  # bits of the 128 of a hash that two images may differ in: one band of 8 is then equal
)
ALIKE = 0.97  # correlation of the thumbnails of two images that look the same
ROWS = 256  # of a bucket, compared at once


def closest(
  hashes: np.ndarray, thumbnails: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """For every image the earlier one that looks most like it, within its group and outside.

  Two hashes that differ in at most `DIFFERENT` bits have one of their eight bands of 16 bits in
  common, so only images that share a band are compared: buckets, not all pairs.

  Args:
    hashes: uint64 [n, 2].
    thumbnails: float32 [n, k], mean 0 and norm 1; images of one value (all 0) look like no other.
    groups: int [n], such as splits.

  Returns:
    (same, other): int [n] each, index of an earlier image of the same and of another group, or -1.
  """
  count = len(hashes)
  best = np.full((2, count), ALIKE, np.float32)
  twin = np.full((2, count), -1)
  bands = np.ascontiguousarray(hashes).view(np.uint16).reshape(count, -1)
  told = np.flatnonzero(thumbnails.any(1)) if count else np.zeros(0, int)
  for band in bands.T:
    order = told[np.argsort(band[told], kind='stable')]
    starts = np.flatnonzero(np.diff(band[order].astype(int), prepend=-1))
    for bucket in np.split(order, starts[1:]):
      if len(bucket) > 1:
        _compare(bucket, hashes, thumbnails, groups, best, twin)
  return twin[0], twin[1]


def _compare(bucket, hashes, thumbnails, groups, best, twin):
  """Updates `best` and `twin` with the pairs of a bucket, whose indices rise."""
  for start in range(0, len(bucket), ROWS):
    rows = bucket[start : start + ROWS]
    before = bucket[: start + len(rows)]
    bits = np.bitwise_count(hashes[rows, None] ^ hashes[None, before]).sum(-1)
    near = (bits <= DIFFERENT) & (before[None] < rows[:, None])
    alike = np.where(near, thumbnails[rows] @ thumbnails[before].T, -1)
    foreign = groups[rows, None] != groups[None, before]
    for kind, allowed in enumerate((~foreign, foreign)):
      score = np.where(allowed, alike, -1)
      at = score.argmax(1)
      value = score[np.arange(len(rows)), at]
      better = value > best[kind, rows]
      best[kind, rows[better]] = value[better]
      twin[kind, rows[better]] = before[at[better]]
