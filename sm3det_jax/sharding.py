"""The device mesh, and which axis of which array lies on it.

The mesh has up to three axes. Images are spread over all of them, `('data', 'expert', 'model')`;
expert weights over `expert`, the hidden channels of FFNs that are or stand beside experts over
`model`; all else is replicated. With `expert=1` and `model=1`, the defaults, this is plain data
parallelism. A mesh without the axis `model` is one of `model=1`.
"""

import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from data_pipelines.errors import UserError
from sm3det_jax.config.backbones import expert_counts

AXES = ('data', 'expert', 'model')
# Of the whole training state: optimizer moments and averages carry the names of their parameters.
# An axis that the mesh lacks, or that does not divide, cuts nothing; one that stands twice cuts the
# first that it divides: specialised experts are [modality, expert, ..].
RULES = (
  (r'(.*/)?(experts_|coll\.)w1', ('expert', None, 'model')),
  (r'(.*/)?(experts_|coll\.)(b1|w2)', ('expert', 'model')),
  (r'(.*/)?(experts_\w+|coll\.b2)', ('expert',)),
  (r'(.*/)?spec\.w1', ('expert', 'expert', None, 'model')),
  (r'(.*/)?spec\.(b1|w2)', ('expert', 'expert', 'model')),
  (r'(.*/)?spec\.b2', ('expert', 'expert')),
  (r'(.*/)?shared\.w1', (None, 'model')),
  (r'(.*/)?shared\.(b1|w2)', ('model',)),
  ('.*', ()),
)
REFUSED = object()  # of leaves that no rule matches

logger = logging.getLogger(__name__)


def start_processes() -> None:
  """Joins the processes of a run, where the environment says that there is more than one.

  How many comes from `JAX_NUM_PROCESSES`, which launch/ sets, else from srun or GKE. With
  `JAX_COORDINATOR_ADDRESS` (host:port of process 0) and `JAX_PROCESS_ID` they meet there; without
  them JAX finds the others itself, as it can on TPU slices and under Slurm. It must come before
  anything asks JAX for its devices.

  Raises:
    UserError: one of the two variables without the other or without a number of processes.
  """
  count = _process_count()
  address, index = (os.environ.get(f'JAX_{k}') for k in ('COORDINATOR_ADDRESS', 'PROCESS_ID'))
  if (address is None) != (index is None) or (address and not count):
    raise UserError(
      f'JAX_COORDINATOR_ADDRESS={address}, JAX_PROCESS_ID={index}, JAX_NUM_PROCESSES={count}: '
      'set all three, or only the last where JAX finds the others itself (a TPU slice, Slurm)'
    )
  if (count or 1) == 1 or jax.distributed.is_initialized():
    return
  if address:
    jax.distributed.initialize(address, count, int(index))
  else:
    jax.distributed.initialize()


def _process_count():
  """Of the run, None if nothing says it."""
  for name in ('JAX_NUM_PROCESSES', 'SLURM_STEP_NUM_TASKS'):
    if value := os.environ.get(name):
      return int(value)
  hosts = os.environ.get('TPU_WORKER_HOSTNAMES')  # of a slice on GKE, separated by commas
  return len(hosts.split(',')) if hosts else None


def make_mesh(mesh: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The mesh that `config.mesh` describes.

  Args:
    mesh: {'data': n, 'expert': m, 'model': k}, 1 where there is no `model`; a `data` of -1 takes
      all devices that the others leave.
    devices: those to use; default all. With fewer asked for than there are, the first ones.

  Returns:
    A mesh with Auto axes ('data', 'expert') and, unless it is 1, 'model'.

  Raises:
    UserError: sizes that the number of devices does not hold.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes, have = _sizes(mesh), len(devices)
  rest = {axis: n for axis, n in sizes.items() if axis != 'data'}
  if min(rest.values()) < 1 or sizes['data'] < 1 and sizes['data'] != -1:
    given = ', '.join(f'{axis}={n}' for axis, n in sizes.items())
    raise UserError(f'config.mesh: {given}; sizes are at least 1 (data=-1: the rest)')
  each = math.prod(rest.values())
  if sizes['data'] == -1 and have % each:
    given = ' x '.join(f'{axis}={n}' for axis, n in rest.items())
    raise UserError(f'config.mesh: {given} does not divide the {have} devices')
  sizes['data'] = have // each if sizes['data'] == -1 else sizes['data']
  want, text = sizes['data'] * each, _text(sizes)
  if want > have:
    raise UserError(f'config.mesh: {text} = {want} devices, there are {have}')
  if want < have and jax.process_count() > 1:
    raise UserError(
      f'config.mesh: {text} = {want} devices, but the {jax.process_count()} processes have {have} '
      'and all of them must take part'
    )
  if want < have:
    logger.warning('config.mesh leaves %d of %d devices idle', have - want, have)
  # on v6e and v5p `expert` may be a part of a side of the torus
  grid = mesh_utils.create_device_mesh(
    tuple(sizes.values()), devices[:want], allow_split_physical_axes=True
  )
  return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def _sizes(mesh):
  """{axis: size} of `config.mesh`, without `model` where that is 1."""
  sizes, model = {'data': mesh['data'], 'expert': mesh['expert']}, mesh.get('model', 1)
  return sizes if model == 1 else {**sizes, 'model': model}


def _text(sizes):
  return ' x '.join(f'{axis} {n}' for axis, n in sizes.items())


def evaluation_mesh(mesh: Mapping[str, int]) -> Mesh:
  """`make_mesh`, or all devices where a run's `config.mesh` is of another number of them."""
  have, sizes = jax.device_count(), _sizes(mesh)
  data = sizes.pop('data')
  each = math.prod(sizes.values())
  fits = data * each == have or 0 < data * each < have and jax.process_count() == 1
  rest = sizes if have % each == 0 else {'expert': 1}
  return make_mesh(mesh if fits else {'data': -1, **rest})


def check_mesh(config: Any, mesh: Mesh) -> None:
  """Raises a UserError if batch or experts do not divide over the mesh.

  The smallest batch is one group of images a device, so that no device ever lacks a task.
  """
  ratios = [task.ratio for task in config.tasks.values()]
  group, micro = sum(ratios), config.optim.accumulate
  groups = config.batch_size // micro // group
  if groups % mesh.size:
    nearest = max(1, round(groups / mesh.size)) * mesh.size * group * micro
    each = f', of which each of {micro} micro-batches has' if micro > 1 else ' is'
    raise UserError(
      f'config.batch_size={config.batch_size}{each} {groups} group(s) of '
      f'{" + ".join(map(str, ratios))} = {group} images, which {mesh.size} devices '
      f'({_text(mesh.shape)}) cannot share: each needs whole groups, so the batch is a multiple of '
      f'{f"{micro} x " if micro > 1 else ""}{mesh.size} x {group} = {micro * mesh.size * group}, '
      f'such as {nearest}'
    )
  counts, expert = expert_counts(config), mesh.shape['expert']
  for what, experts in counts.items():
    if experts % expert:
      every = math.gcd(*counts.values())
      sizes = [n for n in range(1, every + 1) if every % n == 0]
      raise UserError(
        f'config.mesh.expert={expert} does not divide {what}={experts}; '
        f'sizes that do: {", ".join(map(str, sizes))}'
      )


def batch_sharding(mesh: Mesh, micro_batches: int = 1) -> NamedSharding:
  """Of every array of a batch: its images over all devices.

  They are axis 0, and axis 1 behind that of several micro-batches (`optim.accumulate`).
  """
  return NamedSharding(mesh, PartitionSpec(*[None] * (micro_batches > 1), mesh.axis_names))


def put_batch(batch: Any, mesh: Mesh, micro_batches: int = 1) -> Any:
  """Global arrays of this process's part of a batch, a tree of NumPy arrays."""
  where = batch_sharding(mesh, micro_batches)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(where, x), batch)


def put_tree(tree: Any, mesh: Mesh, rules: Sequence | None = None) -> Any:
  """A tree of arrays where `rules` say; those of one process have to be the same on all of them.

  Args and errors as `tree_sharding`.
  """
  where = tree_sharding(mesh, tree, rules)
  local = lambda x: jax.device_get(x) if getattr(x, 'is_fully_addressable', True) else x
  return jax.tree.map(lambda x, s: jax.device_put(local(x), s), tree, where)


def replicated(mesh: Mesh) -> NamedSharding:
  """One whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def tree_sharding(mesh: Mesh, tree: Any, rules: Sequence | None = None) -> Any:
  """`NamedSharding` of every array of a tree (parameters, optimizer state), by `rules`.

  Args:
    mesh: from `make_mesh`.
    tree: arrays or `jax.ShapeDtypeStruct`s.
    rules: (regex, mesh axis or None for each axis of an array) pairs, the first that matches
      counts. By default `RULES`, which describe all models: one that finds nothing, as that of
      experts in a dense model, is fine.

  Raises:
    UserError: as `match`.
  """
  specs = match(tree, RULES, all_used=False) if rules is None else match(tree, rules)
  leaves, form = jax.tree.flatten(tree)
  where = [
    NamedSharding(mesh, _fitting(mesh, spec, array.shape))
    for spec, array in zip(form.flatten_up_to(specs), leaves, strict=True)
  ]
  return form.unflatten(where)


def _fitting(mesh, spec, shape):
  """A rule's axes, each where it divides a side of the array."""
  found = []
  for axis, side in zip(spec, shape, strict=False):
    free = axis in mesh.axis_names and axis not in found
    found.append(axis if free and side % mesh.shape[axis] == 0 else None)
  while found and found[-1] is None:
    found.pop()
  return PartitionSpec(*found)


def spread(mesh: Mesh, shardings: Any, like: Any) -> Any:
  """`shardings` with every array cut over `data` too, along its longest free axis that divides.

  An array without such an axis stays as it is. This is ZeRO-1 when the arrays are optimizer state
  (Rajbhandari et al. 2020): each device updates its share, then all gather the parameters.

  Args:
    mesh: from `make_mesh`.
    shardings: tree of `NamedSharding`, as `tree_sharding`.
    like: the arrays or `jax.ShapeDtypeStruct`s.
  """
  size = mesh.shape['data']

  def one(where, array):
    spec = [*where.spec, *[None] * (array.ndim - len(where.spec))]
    free = [i for i, n in enumerate(array.shape) if spec[i] is None and n % size == 0 and n]
    if size == 1 or not free:
      return where
    spec[max(free, key=lambda i: array.shape[i])] = 'data'
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree.map(one, shardings, like)


def match(
  tree: Any, rules: Sequence[tuple[str, Any]], all_used: bool = True, rest: Any = REFUSED
) -> Any:
  """A tree of the same form with the value of the first rule that matches each leaf's path.

  Args:
    tree: any pytree; a leaf's path is its keys joined by '/', such as 'params/neck/kernel'.
    rules: (regex of the whole path, value) pairs, in order.
    all_used: every rule has to decide about a leaf.
    rest: value of leaves that no rule matches; by default they are an error.

  Raises:
    UserError: leaves that no rule matches, which are listed; a rule that decides about none, be it
      that it matches nothing or that rules before it take all that it matches.
  """
  paths = [
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, _ in jax.tree.leaves_with_path(tree)
  ]
  regexes = [regex for regex, _ in rules]
  found = [next((i for i, r in enumerate(regexes) if re.fullmatch(r, p)), None) for p in paths]
  missed = [p for p, i in zip(paths, found, strict=True) if i is None]
  if missed and rest is REFUSED:
    raise UserError(f'no rule of {regexes} matches {", ".join(missed)}')
  for unused in sorted(set(range(len(rules))) - set(found)) if all_used else ():
    taken = any(re.fullmatch(regexes[unused], p) for p in paths)
    why = (
      'decides nothing: rules before it take all that it matches' if taken else 'matches nothing'
    )
    raise UserError(f'rule {regexes[unused]!r} {why}; rules in order: {regexes}')
  values = [rest if i is None else rules[i][1] for i in found]
  return jax.tree.unflatten(jax.tree.structure(tree), values)
