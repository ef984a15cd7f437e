"""A tiny model of all three tasks, and batches for it."""

import json

import numpy as np

from sm3det_jax import config as config_lib

SIZE = 64  # px


def tiny_config(groups=8, **optim):
  """Three tasks, MoE in the last two stages, gate noise, drop path and random sampling on."""
  config = config_lib.default()
  config.batch_size = 4 * groups
  for task in config.tasks.values():
    task.size, task.max_objects, task.head.channels = (SIZE, SIZE), 4, 32
    if task.head.type == 'oriented_rcnn':
      task.head.rpn.samples, task.head.roi.samples, task.head.roi.fc_channels = 32, 32, 32
      task.head.proposals.update(pre_nms=64, max_proposals=32)
    else:
      task.head.convs = 1
  config.backbone.update(depths=(1, 1, 1, 1), channels=(8, 16, 16, 32), layer_scale=1.0)
  config.moe.blocks = ((), (), (0,), (0,))
  config.neck.channels = 32
  config.dla.warmup_steps = 2
  config.optim.update(warmup_steps=3, lr=1e-3, ema=0.99)
  config.optim.update(optim)
  return config_lib.check(config)


def batch_of(config, step):
  """Random images with a few objects each, well inside."""
  rng, batch = np.random.default_rng(step), {}
  groups = config.batch_size // sum(t.ratio for t in config.tasks.values())
  for name, task in config.tasks.items():
    n, m = groups * task.ratio, task.max_objects
    centre, side = rng.uniform(16, 48, (n, m, 2)), rng.uniform(10, 24, (n, m, 2))
    boxes = np.concatenate([centre - side / 2, centre + side / 2], -1)
    if task.kind == 'obb':
      angle = rng.uniform(-np.pi / 2, np.pi / 2, (n, m, 1))
      boxes = np.concatenate([centre, np.sort(side)[..., ::-1], angle], -1)
    batch[name] = {
      'images': rng.integers(0, 256, (n, SIZE, SIZE, 3), np.uint8),
      'boxes': boxes.astype(np.float32),
      'labels': rng.integers(0, len(task.classes), (n, m)).astype(np.int32),
      'valid': np.arange(m)[None] < rng.integers(1, m + 1, (n, 1)),
      'shapes': np.full((n, 2), SIZE, np.int32),
    }
  return batch


def config_file(path, config):
  """A config file, as `--config` takes it."""
  content = json.dumps(config.to_dict())
  path.write_text(
    'import json\nfrom sm3det_jax.config import files\n'
    f'def get_config():\n  return files.of_json(json.loads({content!r}))\n'
  )
  return path
