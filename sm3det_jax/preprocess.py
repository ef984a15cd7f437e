"""What happens to images first on the device; training, evaluation and prediction share it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def normalise(
  images: jax.Array, mean: Sequence[float], std: Sequence[float], shapes: jax.Array | None = None
) -> jax.Array:
  """(images - mean) / std in float32 (float64 with x64 on), and 0 in the padding.

  The reference normalises, then pads with zeros; batches come padded, so that order is kept here.

  Args:
    images: [B, H, W, C] in the files' own type: uint8, uint16, int16 or float32.
    mean: of each band, in the files' units.
    std: of each band.
    shapes: [B, 2] (height, width) of what is not padding; None = all.
  """
  bands = jnp.asarray([mean, std], float)[:, None, None, None]  # [2, 1, 1, 1, C]
  images = (images.astype(float) - bands[0]) / bands[1]
  return images if shapes is None else zero_padding(images, shapes)


def zero_padding(images: jax.Array, shapes: jax.Array) -> jax.Array:
  """Images [B, H, W, C] with 0 outside of their `shapes` [B, 2] (height, width)."""
  rows, columns = (jnp.arange(n, dtype=shapes.dtype)[None] for n in images.shape[1:3])
  inside = (rows < shapes[:, :1])[:, :, None] & (columns < shapes[:, 1:])[:, None]  # [B, H, W]
  return jnp.where(inside[..., None], images, 0)


def normalise_batch(batch: dict, config: Any) -> dict:
  """`normalise` for every task of {task: {'images', 'shapes', ...}}, by the task's config."""
  return {
    name: {
      **b,
      'images': normalise(
        b['images'], config.tasks[name].mean, config.tasks[name].std, b.get('shapes')
      ),
    }
    for name, b in batch.items()
  }
