"""`sm3det bench train_step`: how long a training step takes, data loading apart."""

import itertools
import time

import jax
import numpy as np

from data_pipelines import mixture
from sm3det_jax import sharding
from sm3det_jax.config import ConfigDict
from sm3det_jax.model import build
from sm3det_jax.optim import optimizer, training


def measure(config: ConfigDict, steps: int = 20) -> dict[str, float]:
  """Times steps on the first batches of a run.

  Returns:
    'first_step_s' (compilation included), 'median_step_ms', 'slowest_step_ms',
    'images_per_second' at the median, 'devices'.
  """
  model, mesh = build(config), sharding.make_mesh(config.mesh)
  sharding.check_mesh(config, mesh)
  tx = optimizer.build(config, model.term_groups)
  state = training.create_sharded_state(config, model, tx, mesh)
  step, times = training.sharded_step(config, model, tx, mesh), []
  with jax.set_mesh(mesh):
    for batch in itertools.islice(mixture.train_batches(config), steps + 1):
      batch = jax.block_until_ready(sharding.put_batch(batch, mesh))
      start = time.perf_counter()
      state, _ = jax.block_until_ready(step(state, batch))
      times.append(time.perf_counter() - start)
  median = float(np.median(times[1:]))
  return {
    'first_step_s': times[0],
    'median_step_ms': 1e3 * median,
    'slowest_step_ms': 1e3 * max(times[1:]),
    'images_per_second': config.batch_size / median,
    'devices': mesh.size,
  }
