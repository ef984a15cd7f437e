"""`sm3det bench overfit`: can a model learn a few drawn scenes by heart?"""

import pathlib
import tempfile
import time

from sm3det_jax import checkpoint, evaluate, quickstart, train
from sm3det_jax.config import ConfigDict
from sm3det_jax.config.small import shortened

SCENES = 4  # a task


def measure(
  config: ConfigDict, steps: int | None = None, workdir: str | None = None
) -> dict[str, float]:
  """Trains on `SCENES` scenes a modality and scores the model on the same ones.

  Args:
    config: `configs/overfit.py`, changed or not.
    steps: instead of the config's.
    workdir: keeps the run; by default a folder that is deleted.

  Returns:
    'steps', 'seconds', mAP@50 by task as 'map50/<task>', the least of them as 'map50'.
  """
  start = time.perf_counter()
  if steps is not None:
    shortened(config, steps)
  with tempfile.TemporaryDirectory() as temporary:
    workdir = pathlib.Path(workdir or temporary)
    quickstart.draw_and_prepare(config, workdir, {'train': SCENES})
    train.train(config, workdir)
    config, variables = checkpoint.restore_for_inference(workdir)
    metrics = evaluate.evaluate(config, variables, out_dir=workdir)
  scores = {f'map50/{name}': task['map50'] for name, task in metrics['tasks'].items()}
  seconds = time.perf_counter() - start
  return (
    {'steps': config.optim.steps, 'seconds': seconds} | scores | {'map50': min(scores.values())}
  )
