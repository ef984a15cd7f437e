"""Images that look the same, mirrored or turned too, found without comparing all pairs."""

from collections.abc import Iterator

import numpy as np

from sm3det_jax.analysis.doctor import pixels

DIFFERENT = 7  # of the 128 bits of a hash, at most: one of its 8 bands is then equal
ALIKE, COPY = 0.97, 0.999  # correlation of the thumbnails of images that look alike; of copies


def closest(
  hashes: np.ndarray, thumbnails: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """For every image the earlier one that looks most like it, or a copy, in its group and outside.

  Two hashes that differ in at most `DIFFERENT` bits have one of their eight bands of 16 bits in
  common, so only images that share a band are compared: buckets, not all pairs. An image is
  compared in each of `pixels.ORIENTATIONS` with the earlier ones as they are.

  Args:
    hashes: uint64 [n, 8, 2], of every orientation.
    thumbnails: float32 [n, k], mean 0 and norm 1; images of one value (all 0) look like no other.
    groups: int [n], such as splits.

  Returns:
    (same, other): int [n] each, index of an earlier image of the same and of another group, or -1.
  """
  best = np.full((2, len(hashes)), ALIKE, np.float32)
  twin = np.full((2, len(hashes)), -1)
  bands = np.ascontiguousarray(hashes).view(np.uint16).reshape(len(hashes), -1, 8)
  for k, turn in enumerate(pixels.ORIENTATIONS):
    turned = pixels.turned(thumbnails, turn)
    for b in range(8):
      for i, j in _earlier(bands[:, 0, b], bands[:, k, b]):
        kind = (groups[i] != groups[j]).astype(int)
        near = np.bitwise_count(hashes[i, 0] ^ hashes[j, k]).sum(1) <= DIFFERENT
        near &= best[kind, j] < COPY  # nothing closer is to be found
        near &= ~(bands[i, 0, :b] == bands[j, k, :b]).any(1)  # was compared before
        i, j, kind = i[near], j[near], kind[near]
        alike = (thumbnails[i] * turned[j]).sum(1)
        better = alike > best[kind, j]
        i, j, kind = i[better], j[better], kind[better]
        best[kind, j], twin[kind, j] = alike[better], i
  return twin[0], twin[1]


def _earlier(left: np.ndarray, right: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields all (i, j), i < j, with left[i] == right[j], in pieces in which no j is twice."""
  count = len(left)
  index = np.arange(count)
  keys = np.sort(left.astype(np.int64) * count + index)  # by value, then by place
  start = np.searchsorted(keys, right.astype(np.int64) * count)
  end = np.searchsorted(keys, right.astype(np.int64) * count + index)
  while len(index := index[start[index] < end[index]]):
    yield keys[start[index]] % count, index
    start[index] += 1
