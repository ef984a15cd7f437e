"""Images that look the same, found without comparing all pairs."""

import numpy as np

from sm3det_jax.analysis.doctor import neighbours

DIFFERENT = 7  # of the 128 bits of a hash, at most: one of its 8 bands is then equal
ALIKE, COPY = 0.97, 0.999  # correlation of the thumbnails of images that look alike; of copies


def closest(
  hashes: np.ndarray, thumbnails: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """For every image the earlier one that looks most like it, or a copy, in its group and outside.

  Two hashes that differ in at most `DIFFERENT` bits have one of their eight bands of 16 bits in
  common, so only images that share a band are compared: buckets, not all pairs.

  Args:
    hashes: uint64 [n, 2].
    thumbnails: float32 [n, k], mean 0 and norm 1; images of one value (all 0) look like no other.
    groups: int [n], such as splits.

  Returns:
    (same, other): int [n] each, index of an earlier image of the same and of another group, or -1.
  """
  best = np.full((2, len(hashes)), ALIKE, np.float32)
  twin = np.full((2, len(hashes)), -1)
  bands = np.ascontiguousarray(hashes).view(np.uint16).reshape(len(hashes), 8)
  for b, band in enumerate(bands.T):
    order = np.argsort(band, kind='stable')  # so the earlier one comes first in a bucket
    key = band[order]
    for i, j in neighbours.pairs(len(order), lambda i, j, key=key: key[i] == key[j]):
      i, j = order[i], order[j]
      kind = (groups[i] != groups[j]).astype(int)
      near = np.bitwise_count(hashes[i] ^ hashes[j]).sum(1) <= DIFFERENT
      near &= best[kind, j] < COPY  # nothing closer is to be found
      near &= ~(bands[i, :b] == bands[j, :b]).any(1)  # was compared before
      i, j, kind = i[near], j[near], kind[near]
      alike = (thumbnails[i] * thumbnails[j]).sum(1)
      better = alike > best[kind, j]
      i, j, kind = i[better], j[better], kind[better]
      best[kind, j], twin[kind, j] = alike[better], i
  return twin[0], twin[1]
