"""What happens to images first on the device; training, evaluation and prediction share it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.errors import UserError
from data_pipelines.radiometry import DECIBELS, in_file

TOP = 255  # what the upper end of a range becomes: mean and std are mostly of 8 bits


def model_input(images: jax.Array, task: ConfigDict, shapes: jax.Array | None = None) -> jax.Array:
  """What a task's model sees of images: its `input` applied, then normalised.

  Args:
    images: [B, H, W, C] in the files' own type and unit, C the task's bands.
    task: its config; `input`, `mean` and `std` count.
    shapes: as for `normalise`.

  Raises:
    UserError: as `apply_input`.
  """
  return normalise(apply_input(images, task.input), task.mean, task.std, shapes)


def apply_input(images: jax.Array, c: ConfigDict) -> jax.Array:
  """Images in the unit and range of a task's `input`, 0 to 255; unchanged where it is as is.

  Args:
    images: [..., C] in the files' own type and unit.
    c: the task's `input`, with its numbers (`data_pipelines.radiometry.resolved`).

  Raises:
    UserError: percentiles that no data set has given a number yet.
  """
  if c.range == 'as_is':
    return images
  if not len(c.low):
    raise UserError(
      "input.range='percentiles' of a task: its low and high come from the data set when a run "
      "starts; for what needs no data, set range='fixed', low and high"
    )
  images = jnp.asarray(images).astype(float)
  of_bands = lambda ends: jnp.asarray(ends, images.dtype).reshape((1,) * (images.ndim - 1) + (-1,))
  low, span = of_bands(c.low), of_bands(np.subtract(c.high, c.low))
  if c.unit in DECIBELS:
    least = of_bands(in_file(c.low, c.unit))  # 0 and less have no decibels
    images = DECIBELS[c.unit] * jnp.log10(jnp.maximum(images, least))
  return jnp.clip((images - low) * (TOP / span), 0, TOP)


def shown(image: np.ndarray, task: ConfigDict) -> np.ndarray:
  """An image [H, W, C] for the eye: as the task's model sees it, uint8, or itself if that is as is.

  Args:
    image: in the file's own type and unit, with the task's bands.
    task: its config.
  """
  if task.input.range == 'as_is':
    return image
  return np.rint(apply_input(jnp.asarray(image), task.input)).astype(np.uint8)


def normalise(
  images: jax.Array, mean: Sequence[float], std: Sequence[float], shapes: jax.Array | None = None
) -> jax.Array:
  """(images - mean) / std in float32 (float64 with x64 on), and 0 in the padding.

  The reference normalises, then pads with zeros; batches come padded, so that order is kept here.

  Args:
    images: [B, H, W, C] in the files' own type, uint8, uint16, int16 or float32, or of
      `apply_input`.
    mean: of each band, in the unit of the images.
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


def normalise_batch(batch: dict, config: ConfigDict) -> dict:
  """`model_input` for every task of {task: {'images', 'shapes', ...}}, by the task's config."""
  return {
    name: {**b, 'images': model_input(b['images'], config.tasks[name], b.get('shapes'))}
    for name, b in batch.items()
  }
