"""Which array of a model takes which of a file, by name and shape; what became of each."""

import functools
import re
from typing import NamedTuple

import jax
import numpy as np

from data_pipelines.errors import UserError
from sm3det_jax.config.backbones import BACKBONES
from sm3det_jax.config.registry import resolve
from sm3det_jax.interop import backbones, heads, layouts, official, sources
from sm3det_jax.interop.layouts import Entry
from sm3det_jax.interop.report import Report, Row
from sm3det_jax.model import build


class Match(NamedTuple):
  """What a state dict has for a model.

  Attributes:
    state: its arrays by the names of the whole official detector, less what is dropped.
    sources: (entry, {official name: name in `state`}) of every array of ours that it gives.
    report: what became of each.
  """

  state: dict[str, np.ndarray]
  sources: list[tuple[Entry, dict[str, str]]]
  report: Report


def of_state(config, variables, state, source):
  """({our path: array}, report) of a state dict for a model of these variables (or shapes)."""
  found = match(config, variables, state, source)
  values = {
    (entry.collection, *entry.path): layouts.ours(
      entry, {name: found.state[theirs] for name, theirs in names.items()}
    )
    for entry, names in found.sources
  }
  return values, found.report


def match(config, variables, state: dict, source: str) -> Match:
  """Pairs the arrays of a state dict with those of a model of these variables (or shapes)."""
  rows = [Row('dropped', n, 'not part of a model') for n in state if is_dropped(n)]
  entries = official.entries(config, partial=True)
  state = {n: a for n, a in state.items() if not is_dropped(n)}
  whole = is_whole(state)
  read = functools.cache(lambda: _read_of_neck(config)) if whole else None
  may_be_fresh = functools.partial(_may_be_fresh, config, read)
  state, classifier = renamed(state, config, {n for e in entries for n in e.names})
  rows += [Row('dropped', n, 'the classifier') for n in classifier]
  pairs, taken = [], set()
  for entry in entries:
    like = layouts.get(variables, (entry.collection, *entry.path))
    wanted = layouts.theirs(entry, np.broadcast_to(np.float32(0), like.shape))
    names = {n: source_of(n, a.shape, state, config.tasks) for n, a in wanted.items()}
    new = [_row(n, names[n], wanted[n].shape, state) for n in wanted]
    taken |= {n for n in names.values() if n in state}
    if all(row.status in ('loaded', 'copied') for row in new):
      pairs.append((entry, names))
    elif all(row.status == 'missing' for row in new) and may_be_fresh(entry.path):
      new = [row._replace(status='fresh') for row in new]
    rows += new
  rows += [Row('unexpected', n, str(state[n].shape)) for n in state if n not in taken]
  for path in flat(variables).keys() - {(e.collection, *e.path) for e in entries}:
    status = 'fresh' if may_be_fresh(path[1:]) else 'missing'
    rows.append(Row(status, '/'.join(path), 'has no official name'))
  return Match(state, pairs, Report(source, rows))


def is_whole(state: dict) -> bool:
  """Whether the arrays are a detector's, not those of a backbone alone."""
  return any(name.startswith('neck.') for name in state)


def common(config, state: dict) -> float:
  """How much of a model's names and a file's agree: common ones over all, 1 where all do.

  Names alone: it needs no shapes of the model, which take seconds.
  """
  entries = official.entries(config, partial=True)
  if not is_whole(state):
    entries = [e for e in entries if not _may_be_fresh(config, None, e.path)]
  state = {n: a for n, a in state.items() if not is_dropped(n)}
  try:
    state, _ = renamed(state, config, {n for e in entries for n in e.names})
  except UserError:  # a detector of another task
    return 0.0
  wanted = {source_of(n, None, state, config.tasks) for e in entries for n in e.names}
  return len(wanted & state.keys()) / len(wanted | state.keys())


def source_of(name, shape, state, tasks):
  """The array of a file that `name` is made of: itself, an FFN for an expert, the shared stem.

  A stem must have this shape, unless None is given.
  """
  if name in state:
    return name
  for task in tasks:
    for shared in ('.single.', '.'):
      candidate = name.replace(f'.{task}.', shared)
      if candidate in state and shape in (None, state[candidate].shape):
        return candidate
  return re.sub(r'\.experts\.\d+\.', '.', name)


def is_dropped(name: str) -> bool:
  """Whether an array is no part of a model: an average, a constant."""
  return bool(name.endswith(official.IGNORED) or re.fullmatch(sources.DROPPED, name))


def renamed(state, config, wanted):
  """(the arrays by the names of the whole official detector, names of a classifier's)."""
  whole, classifier = is_whole(state), []
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


def of_arrays(ours, others, source):
  """({our path: array}, report) of another model of ours; both are {path: array}, see `flat`."""
  rows = []
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


def flat(tree):
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {tuple(key.key for key in path): leaf for path, leaf in leaves}
