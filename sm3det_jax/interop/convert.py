"""Official weights into a workdir and back, and the weights that a training starts from.

`to_workdir` and `to_file` do the work of `sm3det convert`; `load_matching` is for fine-tuning.
"""

import logging
import os
import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.errors import UserError
from sm3det_jax import checkpoint
from sm3det_jax.config import joint_classes, label_space
from sm3det_jax.interop import (
  backbones,
  constants,
  matching,
  official,
  pretrained,
  recognition,
  sources,
)
from sm3det_jax.interop.files import state_files
from sm3det_jax.interop.report import PROBLEMS, Report
from sm3det_jax.model import build

SHOWN = 3  # names in a one-line error

logger = logging.getLogger(__name__)


def to_workdir(config: ConfigDict, file: str | os.PathLike, out: str | os.PathLike) -> Report:
  """Makes a workdir, for `evaluate` and `predict`, of a file of official weights.

  A whole SM3Det detector or one of a single task must give every array. A backbone trained on
  ImageNet must give the whole backbone but its routers; its dense layers are copied into every
  expert, and pyramid and heads stay fresh.

  Args:
    config: the model's, checked.
    file: .pth (also .pt, .bin, .tar ..), .safetensors or .npz.
    out: the new workdir; gets conversion.txt with a line for each array.

  Raises:
    FileNotFoundError: no such file.
    UserError: a damaged or refused file; arrays missing, unexpected or of other shapes (a table
      of all of them is logged); `out` holds a run.
  """
  if (pathlib.Path(out) / 'config.json').exists():  # told before the work
    raise UserError(f'{out} holds a run already; give a folder of its own')
  state = state_files.read(file)
  shapes = jax.eval_shape(build(config).init, jax.random.key(0))
  values, report = matching.of_state(config, shapes, state, str(file))
  if report.problems:
    logger.error('%s\n%s', report.summary(), report.table(*PROBLEMS))
    raise UserError(f'{_refusal(config, report)}. {_sentence(recognition.recognise(state))}')
  whole = all(r.status != 'fresh' for r in report.rows)
  checkpoint.save_weights(out, config, _filled(shapes if whole else _fresh(config), values))
  (pathlib.Path(out) / 'conversion.txt').write_text(f'{report.summary()}\n\n{report.table()}\n')
  return report


def recognise(file: str | os.PathLike) -> recognition.Recognised:
  """The known weights that a file holds.

  Raises:
    FileNotFoundError: no such file.
    UserError: a damaged or refused file, or none that is known.
  """
  found = recognition.recognise(state_files.read(file))
  if not found.fits:
    raise UserError(f'{file}: which model is it? Say --config=CONFIG; {found.words()}')
  return found


def to_file(workdir: str | os.PathLike, file: str | os.PathLike) -> int:
  """Writes a run's weights (its average where it keeps one) by their official names.

  A model of one task gets the names of a detector of one data set.

  Args:
    workdir: of the run.
    file: ending in .pth, .safetensors or .npz.

  Returns:
    How many arrays were written.
  """
  config, variables = checkpoint.restore_for_inference(workdir)
  state = official.to_state_dict(variables, config)
  named = {(e.collection, *e.path) for e in official.entries(config)}
  if left := ['/'.join(p) for p in matching.flat(variables) if p not in named]:
    logger.warning(
      '%d arrays have no official name and stay behind: %s', len(left), ', '.join(left)
    )
  state |= constants.of(state)
  if len(config.tasks) == 1:
    ((task, c),) = config.tasks.items()
    plain = backbones.find(config.backbone.type).plain
    state = sources.to_one_task(state, task, c.head.strides, plain)
  state_files.write(file, state, joint_classes(config))
  return len(state)


def load_matching(
  variables: dict, source: str | os.PathLike | dict, config: ConfigDict
) -> tuple[dict, Report]:
  """The variables with all that `source` has by the same name and shape.

  So a model with other classes or other tasks starts from what it shares with a trained one.

  Args:
    variables: of the model that is to start, arrays anywhere.
    source: a workdir, a file of official weights, or its state dict.
    config: of the model that is to start.

  Returns:
    (variables, report); what does not fit is as it was, and in `report.problems`.

  Raises:
    FileNotFoundError: no such file or run.
    UserError: a damaged or refused file; nothing fits.
  """
  values, report = _matching(variables, source, config)
  return _filled(variables, values), report


def start_from(model: dict, config: ConfigDict) -> dict:
  """A training's state `model` with the weights that `config.init_from` names."""
  values, report = _matching(model['variables'], config.init_from, config)
  whole = report.counted('copied', 'fresh', 'missing', 'unexpected')
  logger.info('\n'.join(filter(None, (report.summary(), whole, report.table('shape')))))
  filled = {'variables': _filled(model['variables'], values)}
  if 'ema' in model:
    filled['ema'] = _filled({'params': model['ema']}, values)['params']
  return model | filled


def _matching(variables, source, config):
  """({our path: array}, report) of all that fits."""
  if isinstance(source, dict):
    values, report = matching.of_state(config, variables, source, 'state dict')
  elif pathlib.Path(source).is_dir():
    there, other = checkpoint.restore_for_inference(source)
    like = matching.flat(variables)
    other = pretrained.fitted(matching.flat(other), there, like, config, source)
    values, report = matching.of_arrays(like, other, source)
  else:
    values, report = matching.of_state(config, variables, state_files.read(source), str(source))
  if not values:
    raise UserError(f'{report.summary()}: nothing of it fits this config')
  return values, report


def _refusal(config, report):
  """One line that says what is wrong and, for class counts, why."""
  problems = report.problems
  names = ', '.join(f'{r.name} {r.detail} ({r.status})' for r in problems[:SHOWN])
  more = f' and {len(problems) - SHOWN} more' * (len(problems) > SHOWN)
  classes = ', '.join(f'{t} {len(label_space(config, t))}' for t in config.tasks)
  return (
    f'{report.summary()}; a half-loaded model is refused: {names}{more}. Does the config fit the '
    f'file? Its backbone is {config.backbone.type}, MoE blocks {config.moe.blocks}, classes that '
    f'its heads score: {classes}'
  )


def _sentence(found):
  words = found.words()
  return words[0].upper() + words[1:]


def _filled(variables, values) -> dict:
  """`variables` (arrays or shapes) with `values` put in, in the types and places of the old."""

  def fill(path, old):
    new: Any = values.get(tuple(key.key for key in path))
    if new is None:
      return old
    new = np.asarray(new).astype(old.dtype)
    if getattr(old, 'sharding', None) is None:
      return jax.numpy.asarray(new)
    return jax.make_array_from_callback(new.shape, old.sharding, lambda index: new[index])

  return jax.tree_util.tree_map_with_path(fill, variables)


def _fresh(config):
  """The variables that a training would begin with."""
  return jax.jit(build(config).init)(jax.random.fold_in(jax.random.key(config.seed), 0))
