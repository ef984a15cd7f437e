"""Layouts of official arrays against ours, and the entries of a table that pairs the two."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from data_pipelines.errors import UserError


class Entry(NamedTuple):
  """One array of ours and where it comes from."""

  path: tuple[str, ...]
  names: tuple[str, ...]  # several official arrays are stacked on a new first axis
  layout: str  # a key of LAYOUTS or 'roi<size>'; '*' after it: stacked
  collection: str = 'params'


def _merging(x):
  """Last axis: C channels of 2x2 patches -> 2x2 patches of C channels."""
  return x.reshape(*x.shape[:-1], -1, 4).swapaxes(-1, -2).reshape(x.shape).T


def _columns_first(x):
  """Second axis: 2x2 patches of C channels, columns first -> rows first, or back."""
  return x.reshape(len(x), 4, -1)[:, [0, 2, 1, 3]].reshape(x.shape)


def _from_merging(x):
  return x.T.reshape(*x.T.shape[:-1], 4, -1).swapaxes(-1, -2).reshape(x.T.shape)


# (ours from theirs, theirs from ours), by the name of the layout.
LAYOUTS = {
  'same': (lambda x: x, lambda x: x),
  'linear': (lambda x: x.T, lambda x: x.T),
  'pointwise': (lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None]),
  'as_conv': (lambda x: x.T[None, None], lambda x: x[0, 0].T),
  'conv': (lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
  # (filters, C, 1, 3, 3) of an oriented convolution
  'oriented': (
    lambda x: x[:, :, 0].transpose(2, 3, 1, 0),
    lambda x: x.transpose(3, 2, 0, 1)[:, :, None],
  ),
  'merging': (_merging, _from_merging),  # Swin: linear layer or norm over merged patches
  # Swin as published: the same, patch by patch
  'patches': (lambda x: _columns_first(x).T, lambda x: _columns_first(x.T)),
  'depthwise': (lambda x: x[:, 0].transpose(1, 2, 0), lambda x: x.transpose(2, 0, 1)[:, None]),
}


def roi_layout(size):
  """A linear layer over RoI features: (out, C size size) against (size size C, out)."""

  def ours(x):
    return x.reshape(len(x), -1, size, size).transpose(2, 3, 1, 0).reshape(-1, len(x))

  def theirs(x):
    return x.reshape(size, size, -1, x.shape[-1]).transpose(3, 2, 0, 1).reshape(x.shape[-1], -1)

  return ours, theirs


def directions(layout: str):
  """(ours from theirs, theirs from ours) of one array of this layout."""
  name = layout.rstrip('*')
  if name.startswith('roi'):
    return roi_layout(int(name.removeprefix('roi')))
  return LAYOUTS[name]


def ours(entry: Entry, state: dict) -> np.ndarray:
  """Our array of an entry, from a state dict that has all its official ones."""
  arrays = [directions(entry.layout)[0](np.asarray(state[n])) for n in entry.names]
  return np.stack(arrays) if entry.layout[-1] == '*' else arrays[0]


def theirs(entry: Entry, array: np.ndarray) -> dict[str, np.ndarray]:
  """The official arrays of ours."""
  parts = array if entry.layout[-1] == '*' else [array]
  layout = directions(entry.layout)[1]
  return {n: layout(p) for n, p in zip(entry.names, parts, strict=True)}


def variables(table: Sequence[Entry], state: dict, ignored: tuple[str, ...] = ()) -> dict:
  """Our variables, {'params': ..}, of a state dict.

  Args:
    table: every array.
    state: {official name: array}.
    ignored: ends of the names of arrays that are not taken.

  Raises:
    UserError: names every array that is missing or that nothing here takes.
  """
  wanted = [name for entry in table for name in entry.names]
  missing = [name for name in wanted if name not in state]
  unexpected = sorted(n for n in state.keys() - set(wanted) if not n.endswith(ignored))
  if missing or unexpected:
    raise UserError(f'state dict does not fit: missing {missing}, unexpected {unexpected}')
  tree = {}
  for entry in table:
    put(tree, (entry.collection, *entry.path), jnp.asarray(ours(entry, state)))
  return tree


def state_dict(table: Sequence[Entry], tree: Any) -> dict[str, np.ndarray]:
  """The official names and layouts of our variables, or of a tree of gradients {'params': ..}."""
  out = {}
  for entry in table:
    if entry.collection not in tree:
      continue  # gradients have parameters alone
    out |= theirs(entry, np.asarray(get(tree[entry.collection], entry.path)))
  return out


def get(tree, path):
  for key in path:
    tree = tree[key]
  return tree


def put(tree, path, value):
  for key in path[:-1]:
    tree = tree.setdefault(key, {})
  tree[path[-1]] = value


def expect(part: dict, *kinds: str) -> str:
  """The `type` of a part of an official `model` dict.

  Raises:
    UserError: it is none of `kinds`.
  """
  if part['type'] not in kinds:
    raise UserError(f'{part["type"]} is not supported here, only {", ".join(kinds)}')
  return part['type']


def fixed(name: str, theirs, ours) -> None:
  """Refuses a setting of an official `model` dict that is not one here.

  Raises:
    UserError: theirs differs from ours.
  """
  if theirs != ours:
    raise UserError(f'{name}={theirs} is not supported here, only {ours}')


def plain_losses(*heads: dict) -> None:
  """Refuses weights of the losses of official heads, as `fixed` does."""
  for head in heads:
    for loss in ('loss_cls', 'loss_bbox'):
      fixed(f'loss_weight of {loss}', head[loss].get('loss_weight', 1.0), 1.0)


def affine(path, name, layout) -> list[Entry]:
  """Kernel and bias of one layer ('norm' for the scale of a norm)."""
  ours = 'scale' if layout == 'norm' else 'kernel'
  return [
    Entry((*path, ours), (f'{name}.weight',), 'same' if layout == 'norm' else layout),
    Entry((*path, 'bias'), (f'{name}.bias',), 'same'),
  ]
