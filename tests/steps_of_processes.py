"""Twenty steps of a tiny model in float64 by all processes of a run; the first writes the losses.

Run by test_processes.py: steps_of_processes.py FILE.
"""

import json
import pathlib
import sys

import jax
import numpy as np
from tiny import batch_of, tiny_config

from sm3det_jax import detector, sharding
from sm3det_jax.optim import optimizer, training


def config():
  """One task, four experts, two images a device of four."""
  c = tiny_config(groups=2)
  del c.tasks['rgb'], c.tasks['ifr']
  c.tasks.sar.ratio = 1
  c.moe.update(blocks=((), (), (), (0,)), num_experts=4)
  c.batch_size = 8
  return c


def main(path):
  sharding.start_processes()
  c, hosts, metrics = config(), jax.process_count(), []
  model, mesh = detector.build(c), sharding.make_mesh({'data': 2, 'expert': 2})
  tx = optimizer.build(c, model.term_groups)
  state = jax.device_get(jax.jit(lambda: training.create_state(c, model, tx))())
  jax.config.update('jax_enable_x64', True)
  wide = lambda x: x.astype(np.float64) if x.dtype == np.float32 else x  # noqa: E731
  state = sharding.put_tree(jax.tree.map(wide, state), mesh)
  with jax.set_mesh(mesh):
    step = jax.jit(training.train_step(c, model, tx), donate_argnums=0)
    for i in range(20):
      part = jax.tree.map(lambda x: np.split(x, hosts)[jax.process_index()], batch_of(c, i))
      state, m = step(state, sharding.put_batch(part, mesh))
      metrics.append({k: float(v) for kind in jax.device_get(m).values() for k, v in kind.items()})
  if jax.process_index() == 0:
    pathlib.Path(path).write_text(json.dumps(metrics))


if __name__ == '__main__':
  main(*sys.argv[-1:])
