"""Official weights into a workdir and back, and the weights that a training starts from.

`to_workdir` and `to_file` do the work of `sm3det convert`; `load_matching` is for fine-tuning.
"""

import functools
import logging
import os
import pathlib
import re
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.errors import UserError
from sm3det_jax import checkpoint
from sm3det_jax.config import joint_classes, label_space
from sm3det_jax.config.backbones import BACKBONES
from sm3det_jax.config.registry import resolve
from sm3det_jax.interop import backbones, constants, heads, layouts, official, sources
from sm3det_jax.interop.files import state_files
from sm3det_jax.interop.report import PROBLEMS, Report, Row
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
  state = state_files.read(file)
  shapes = jax.eval_shape(build(config).init, jax.random.key(0))
  values, report = _of_state(config, shapes, state, str(file))
  if report.problems:
    logger.error('%s\n%s', report.summary(), report.table(*PROBLEMS))
    raise UserError(_refusal(config, report))
  whole = all(r.status != 'fresh' for r in report.rows)
  checkpoint.save_weights(out, config, _filled(shapes if whole else _fresh(config), values))
  (pathlib.Path(out) / 'conversion.txt').write_text(f'{report.summary()}\n\n{report.table()}\n')
  return report


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
  if left := ['/'.join(p) for p in _flat(variables) if p not in named]:
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
    values, report = _of_state(config, variables, source, 'state dict')
  elif pathlib.Path(source).is_dir():
    values, report = _of_variables(variables, checkpoint.restore_for_inference(source)[1], source)
  else:
    values, report = _of_state(config, variables, state_files.read(source), str(source))
  if not values:
    raise UserError(f'{report.summary()}: nothing of it fits this config')
  return values, report


def _of_state(config, variables, state, source):
  """({our path: array}, report) of a state dict for a model of these variables (or shapes)."""
  rows = [Row('dropped', n, 'not part of a model') for n in state if _is_dropped(n)]
  entries = official.entries(config, partial=True)
  state = {n: a for n, a in state.items() if not _is_dropped(n)}
  whole = any(n.startswith('neck.') for n in state)
  read = functools.cache(lambda: _read_of_neck(config)) if whole else None
  may_be_fresh = functools.partial(_may_be_fresh, config, read)
  state, classifier = _official(state, config, whole, {n for e in entries for n in e.names})
  rows += [Row('dropped', n, 'the classifier') for n in classifier]
  values, taken = {}, set()
  for entry in entries:
    path = (entry.collection, *entry.path)
    like = layouts.get(variables, path)
    wanted = layouts.theirs(entry, np.broadcast_to(np.float32(0), like.shape))
    names = {n: _source(n, a.shape, state, config.tasks) for n, a in wanted.items()}
    new = [_row(n, names[n], wanted[n].shape, state) for n in wanted]
    taken |= {n for n in names.values() if n in state}
    if all(row.status in ('loaded', 'copied') for row in new):
      values[path] = layouts.ours(entry, {n: state[names[n]] for n in wanted})
    elif all(row.status == 'missing' for row in new) and may_be_fresh(entry.path):
      new = [row._replace(status='fresh') for row in new]
    rows += new
  rows += [Row('unexpected', n, str(state[n].shape)) for n in state if n not in taken]
  for path in _flat(variables).keys() - {(e.collection, *e.path) for e in entries}:
    status = 'fresh' if may_be_fresh(path[1:]) else 'missing'
    rows.append(Row(status, '/'.join(path), 'has no official name'))
  return values, Report(source, rows)


def _source(name, shape, state, tasks):
  """The array of a file that `name` is made of: itself, an FFN for an expert, the shared stem."""
  if name in state:
    return name
  for task in tasks:
    for shared in ('.single.', '.'):
      candidate = name.replace(f'.{task}.', shared)
      if candidate in state and state[candidate].shape == shape:
        return candidate
  return re.sub(r'\.experts\.\d+\.', '.', name)


def _is_dropped(name):
  return name.endswith(official.IGNORED) or re.fullmatch(sources.DROPPED, name)


def _official(state, config, whole, wanted):
  """(the arrays by the names of the whole official detector, names of a classifier's)."""
  classifier = []
  backbone = {n.removeprefix('backbone.'): a for n, a in state.items() if n.startswith('backbone.')}
  rest = {n: a for n, a in state.items() if not n.startswith('backbone.')}
  if not whole:
    classifier = [n for n in rest if re.fullmatch(sources.CLASSIFIER, n)]
    rest = {n: a for n, a in rest.items() if n not in classifier}
    backbone, rest = (backbone, rest) if backbone else (rest, {})
  elif {n.split('.')[0] for n in rest} & heads.modules():
    if len(config.tasks) != 1:
      raise UserError(
        'the file holds a detector of one task, whose name it does not say; '
        f'this config has {", ".join(config.tasks)}. Give one with that task alone'
      )
    ((task, c),) = config.tasks.items()
    rest = sources.of_one_task(rest, task, c.head.strides, len(config.backbone.depths), wanted)
  if kind := backbones.find(config.backbone.type):
    backbone = kind.renamed(backbone, {n.removeprefix('backbone.') for n in wanted})
  return {f'backbone.{n}': a for n, a in backbone.items()} | rest, classifier


def _row(name, found, shape, state):
  if found not in state:
    return Row('missing', name, str(shape))
  if state[found].shape != shape:
    return Row('shape', name, f'{state[found].shape} in the file, {shape} in the model')
  return Row('loaded', name) if found == name else Row('copied', name, f'from {found}')


def _may_be_fresh(config, read, path):
  """Whether a file of this kind cannot have the array, or nothing that detects reads it.

  Args:
    config: of the model.
    read: () -> modules of the neck that heads read, for a whole detector's file; None: for one
      of a backbone.
    path: of the array.
  """
  room, module = path[:2]
  if read and room == 'neck':
    return module not in read()
  if read:
    return room not in ('backbone', *(f'heads_{task}' for task in config.tasks))
  if room != 'backbone' or 'router' in path:
    return True
  kind = resolve(BACKBONES[config.backbone.type].module)
  return kind.beyond_classifier(path[1:], tuple(config.tasks), len(config.backbone.depths))


def _read_of_neck(config):
  """The modules of the neck that some head reads: those whose parameters its levels ask for."""
  network, read = build(config).network, set()
  for name, task in config.tasks.items():
    image = jax.ShapeDtypeStruct((1, 64, 64, task.bands), np.float32)
    levels = lambda key, x, name=name: network.init(key, x, name, method='features')
    made = jax.eval_shape(levels, jax.random.key(0), image)
    read |= set(made['params'].get('neck', ()))
  return read


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


def _of_variables(variables, other, source):
  """({our path: array}, report) of another model of ours."""
  ours, others, rows = _flat(variables), _flat(other), []
  for path, like in ours.items():
    name = '/'.join(path)
    if path not in others:
      rows.append(Row('missing', name, str(like.shape)))
    elif others[path].shape != like.shape:
      rows.append(Row('shape', name, f'{others[path].shape} there, {like.shape} here'))
    else:
      rows.append(Row('loaded', name))
  values = {p: others[p] for p, row in zip(ours, rows, strict=True) if row.status == 'loaded'}
  rows += [Row('unexpected', '/'.join(p), str(a.shape)) for p, a in others.items() if p not in ours]
  return values, Report(str(source), rows)


def _flat(tree):
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {tuple(key.key for key in path): leaf for path, leaf in leaves}


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
