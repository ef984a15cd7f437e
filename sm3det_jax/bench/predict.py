"""`sm3det bench predict`: what a scene costs over the model time of its windows."""

import math
import pathlib
import resource
import tempfile
import time
import warnings

import jax
import numpy as np

from data_pipelines import rasters
from sm3det_jax.config import ConfigDict
from sm3det_jax.detector import build
from sm3det_jax.inference import Pass, detect_step, own_labels
from sm3det_jax.prediction import batches, scene

SCORE = 0.3


def measure(config: ConfigDict, steps: int = 16) -> dict[str, float]:
  """Detects with fresh parameters in a drawn TIFF (deflate, tiles of 512 px) and in its windows.

  Args:
    config: its last task's head looks; windows are of the task's size, a quarter of it shared.
    steps: batches of windows at least.

  Returns:
    'windows', 'model_s' (all windows, read before), 'scene_s' (the same from the file), 'ratio' of
    both, 'windows_per_second' of the scene, 'host_mib' (what the scene added to the peak).
  """
  name = list(config.tasks)[-1]
  c = config.tasks[name]
  size = min(c.size)
  c.test.tile.size, c.test.tile.overlap = size, size // 4
  model, own = build(config), own_labels(config, name)
  variables, run = jax.jit(model.init)(jax.random.key(0)), detect_step(model, config, name)
  step = lambda images, shapes: (run(variables, images, shapes),)
  heads = Pass({name: c}, step, {name: own}, {name: np.full(len(c.classes), SCORE)})
  side = math.ceil(math.sqrt(steps * batches.BATCH))
  length = size + (side - 1) * (size - size // 4)
  with tempfile.TemporaryDirectory() as folder:
    with rasters.open_raster(_drawn(pathlib.Path(folder) / 'scene.tif', length, c.bands)) as raster:
      places = scene.windows(length, length, c).tolist()
      batch = np.stack([raster.read(*place) for place in places[: batches.BATCH]])
      shapes = np.full((len(batch), 2), size, np.int32)
      jax.block_until_ready(step(batch, shapes))  # compiled
      start = time.perf_counter()
      for _ in range(-(-len(places) // batches.BATCH)):
        found = step(batch, shapes)
      jax.block_until_ready(found)
      model_s, before = time.perf_counter() - start, _peak()
      start = time.perf_counter()
      (whole,) = scene.detect([scene.Scene(raster, [heads])])
      whole.found(name)
      scene_s = time.perf_counter() - start
  return {
    'windows': len(places),
    'model_s': model_s,
    'scene_s': scene_s,
    'ratio': scene_s / model_s,
    'windows_per_second': len(places) / scene_s,
    'host_mib': _peak() - before,
  }


def _drawn(path, length, bands):
  """Writes noise, which a file packs badly, as in real images."""
  import rasterio

  options = dict(tiled=True, blockxsize=512, blockysize=512, compress='deflate')
  shape = dict(height=length, width=length, count=bands, dtype='uint8')
  rng, rows = np.random.default_rng(0), 512
  with warnings.catch_warnings(action='ignore', category=rasterio.errors.NotGeoreferencedWarning):
    with rasterio.open(path, 'w', driver='GTiff', **shape, **options) as file:
      for y in range(0, length, rows):
        part = rng.normal(110, 12, (bands, min(rows, length - y), length))
        window = rasterio.windows.Window(0, y, length, part.shape[1])
        file.write(np.clip(part, 0, 255).astype(np.uint8), window=window)
  return path


def _peak():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
