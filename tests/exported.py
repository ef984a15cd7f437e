"""Small models to export: one with a task for each kind of head that is asked for."""

import jax
import numpy as np
from ml_collections import ConfigDict

from sm3det_jax import config as config_lib
from sm3det_jax.config.heads import HEADS
from sm3det_jax.detector import build

SIZE = 64  # px
SMALL = {  # what makes a head small, at any depth of its config
  'channels': 32, 'convs': 1, 'fc_channels': 32, 'pre_nms': 64, 'max_proposals': 32,
  'max_detections': 20,
}  # fmt: skip
OBB = ('oriented_rcnn', 'roi_transformer', 's2anet')
KINDS = tuple(HEADS)


def model(kinds=KINDS, label_space='per_task'):
  """(config, variables) with experts and, by the name of its head, a task for each kind."""
  config = config_lib.default()
  config.tasks, config.label_space = ConfigDict(sort_keys=False), label_space
  for kind in kinds:
    head = _small(config_lib.head(kind))
    head.score_threshold = 0.001
    names = ('plane', kind, f'{kind}s')
    task = config_lib.task('obb' if kind in OBB else 'hbb', 'x', names, size=(SIZE, SIZE))
    task.head = head
    config.tasks[kind] = task
  config.backbone.update(depths=(1, 1, 1, 1), channels=(8, 16, 16, 32), layer_scale=1.0)
  config.moe.blocks, config.moe.num_experts = ((), (), (0,), (0,)), 4
  config.neck.channels, config.batch_size = 32, len(kinds)
  shapes, rng = jax.eval_shape(build(config).init, jax.random.key(0)), np.random.default_rng(0)
  draw = lambda a: rng.normal(0, 0.1, a.shape).astype(a.dtype)
  return config, jax.tree.map(draw, shapes)


def images(count, seed=0):
  """(images [n, H, W, 3] with the values of 8 bits, shapes [n, 2])."""
  rng = np.random.default_rng(seed)
  pixels = rng.integers(0, 256, (count, SIZE, SIZE, 3)).astype(np.float32)
  return pixels, rng.integers(40, SIZE + 1, (count, 2), np.int32)


def difference(found, wanted):
  """max |a - b| / max |b| over the boxes and scores of two sets of detections {name: array}.

  Raises:
    AssertionError: they are not of the same objects.
  """
  np.testing.assert_array_equal(found['valid'], wanted['valid'])
  valid = np.asarray(wanted['valid'])
  assert valid.sum() > 1
  np.testing.assert_array_equal(found['labels'][valid], wanted['labels'][valid])
  pairs = [(np.asarray(s[k])[valid] for s in (found, wanted)) for k in ('boxes', 'scores')]
  return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def _small(config):
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      _small(value)
    elif key in SMALL:
      config[key] = SMALL[key]
  return config
