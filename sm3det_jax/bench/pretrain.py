"""`sm3det bench pretrain`: tiles a second and core that the input of pre-training gives.

sm3det bench pretrain --config=ringmoe:size=tiny
"""

import pathlib
import tempfile
import time

from data_pipelines import mixture
from sm3det_jax import pretrain
from sm3det_jax.config import ConfigDict


def measure(config: ConfigDict, steps: int = 100) -> dict[str, float]:
  """Times reading, decoding, stretch, crop and flip of each task by themselves, in one thread.

  Args:
    config: of `sm3det pretrain`; drawn scenes where it has no data.
    steps: tiles that are timed of each task, after some that open the files.

  Returns:
    'tiles_per_second/<task>', of one core.
  """
  with tempfile.TemporaryDirectory() as folder:
    pretrain.ensure_data(config, pathlib.Path(folder))
    result = {}
    for name, task in mixture.open_tasks(config).items():
      for position in range(8):
        task.draw(position)
      start = time.process_time()
      for position in range(8, 8 + steps):
        task.draw(position)
      result[f'tiles_per_second/{name}'] = steps / (time.process_time() - start)
  return result
