"""Tiles of pre-training: 8-bit stretch, listing, blocks, random access."""

import numpy as np
import pytest

from data_pipelines import images
from data_pipelines.errors import UserError


def test_stretch8_is_two_stretches():
  """Against a plain reading of the rule, pixel by pixel."""
  rng = np.random.default_rng(0)
  image = np.stack([rng.gamma(2, 300, (40, 50)), rng.normal(900, 50, (40, 50))], -1)
  image = image.astype(np.uint16)
  low, high = int(image.min()), int(image.max())
  for k in range(2):
    levels = [round((int(v) - low) / (high - low) * 255) for v in image[..., k].ravel()]
    counts = [sum(v <= level for v in levels) for level in range(256)]
    first = next(level for level in range(256) if counts[level] > 2)  # 0.1 % of 2000
    last = next(level for level in range(256) if counts[level] > 1998)
    expected = [int((min(max(v, first), last) - first) * 255 / (last - first)) for v in levels]
    np.testing.assert_array_equal(images.stretch8(image)[..., k].ravel(), expected)


def test_stretch8_of_one_level():
  image = np.stack([np.full((8, 8), 5.0), np.arange(64.0).reshape(8, 8)], -1)
  assert not images.stretch8(image)[..., 0].any()
  with pytest.raises(UserError, match='constant tile'):
    images.stretch8(np.full((4, 4, 2), 7, np.int16))
  with pytest.raises(UserError, match='not finite'):
    images.stretch8(np.full((4, 4, 2), np.nan))
