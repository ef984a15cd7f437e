"""What a working directory keeps: the config as JSON, and checkpoints that a run continues from.

    workdir/config.json              the run's config
    workdir/checkpoints/<step>/      model (variables, average of parameters), training (optimizer
                                     with DLA, counters), position (step, seed, data fingerprint)
    workdir/damaged_checkpoints/     what could not be read and was stepped over

All randomness is a function of seed and step, and so is the data, so the position stands for both.
"""

import fnmatch
import json
import logging
import os
import pathlib
import re
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from data_pipelines.atomic import write_atomically
from data_pipelines.errors import UserError
from sm3det_jax import sharding
from sm3det_jax.config import files

# What a run may change when it goes on: it alters neither parameters nor the order of samples.
# `optim.steps` only says where to stop where the schedule counts milestones; a cosine ends there.
CHANGEABLE = (
  r'data_root|workers|log_every|checkpoint_every|keep_checkpoints|mesh\.\w+|remat|'
  r'optim\.(steps|zero1)|'
  r'tasks\.[^.]+\.test\..*'
)
SHOWN = 8  # differing keys in an error

logger = logging.getLogger(__name__)


def open_workdir(config: ConfigDict, workdir: str | os.PathLike) -> None:
  """Makes `workdir` with its `config.json`, or checks that it holds a run of this config.

  Raises:
    UserError: it holds another run; the differing keys are named with both values.
  """
  path = pathlib.Path(workdir) / 'config.json'
  if path.exists():
    there, here = _flat(load_config(workdir)), _flat(config)
    keys = [k for k in there | here if there.get(k) != here.get(k)]
    fixed = {'optim.steps'} if config.optim.schedule == 'cosine' else set()
    keys = [k for k in keys if k in fixed or not re.fullmatch(CHANGEABLE, k)]
    if keys:
      shown = [f'{k} is {there.get(k)!r} there, {here.get(k)!r} here' for k in keys[:SHOWN]]
      more = f' (and {len(keys) - SHOWN} more)' * (len(keys) > SHOWN)
      raise UserError(
        f'{path} is of a run with another config: {"; ".join(shown)}{more}. '
        "Give another --workdir, or the run's own values"
      )
  if jax.process_index() == 0:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(config.to_dict(), indent=2) + '\n')


def load_config(workdir: str | os.PathLike) -> ConfigDict:
  """The config of `workdir`'s run.

  Raises:
    FileNotFoundError: there is no run in `workdir`.
    UserError: its config.json is none.
  """
  path = pathlib.Path(workdir) / 'config.json'
  if not path.exists():
    raise FileNotFoundError(f'{path} does not exist: no run was started in this --workdir')
  return files.of_run(path)


def manager(workdir: str | os.PathLike, keep: int = 2) -> ocp.CheckpointManager:
  """The checkpoints of `workdir`; saves in the background and keeps the newest `keep`."""
  return _open(
    workdir, ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
  )


def save(checkpoints: ocp.CheckpointManager, state: dict, position: dict) -> None:
  """Saves `state` {'model': .., 'training': ..} and `position` {'step': .., ..} as that step.

  Raises:
    UserError: the first checkpoint of a run is none that could be read again.
  """
  first = not checkpoints.all_steps()
  args = ocp.args.Composite(
    model=ocp.args.StandardSave(state['model']),
    training=ocp.args.StandardSave(state['training']),
    position=ocp.args.JsonSave(position),
  )
  # forced: the trainer says when to save, no rule of the manager's
  checkpoints.save(position['step'], args=args, force=True)
  if first:  # waits once, rather than find out after days
    checkpoints.wait_until_finished()
    for part in ('model', 'training'):
      manifest = checkpoints.directory / str(position['step']) / part / 'manifest.ocdbt'
      if not manifest.exists():
        raise UserError(f'{manifest} was not written: name another --workdir')


def save_weights(workdir: str | os.PathLike, config: ConfigDict, variables: dict) -> None:
  """Makes `workdir` of variables that no training here gave: step 0, with nothing to go on from.

  Raises:
    UserError: it holds checkpoints, or a run of another config.
  """
  with manager(workdir) as checkpoints:
    if checkpoints.all_steps():
      raise UserError(f'{workdir} holds checkpoints already; give a folder of its own')
    open_workdir(config, workdir)
    args = ocp.args.Composite(
      model=ocp.args.StandardSave({'variables': variables}),
      position=ocp.args.JsonSave({'step': 0}),
    )
    checkpoints.save(0, args=args, force=True)


def restore(checkpoints: ocp.CheckpointManager, like: dict) -> tuple[dict, dict] | None:
  """The newest checkpoint that can be read, or None where there is none at all.

  One that cannot be read is stepped over with a warning and, once an older one is found good, moved
  to `damaged_checkpoints`, so that the run may save that step again.

  Args:
    checkpoints: from `manager`.
    like: the state as `jax.ShapeDtypeStruct`s with shardings, those of any mesh.

  Returns:
    (state, position).

  Raises:
    UserError: there are checkpoints and none can be read, or they are of `save_weights`.
  """
  if 0 in checkpoints.all_steps():
    workdir = pathlib.Path(checkpoints.directory).parent
    raise UserError(
      f'{workdir} holds weights alone, no training to go on with; start one in another --workdir '
      f'with --config.init_from={workdir}'
    )
  found, damaged = _newest_readable(checkpoints, lambda step: restore_args(like))
  if found is None:
    return None
  if damaged:
    _move_aside(checkpoints, damaged)
  return {'model': found.model, 'training': found.training}, found.position


def restore_args(like: dict) -> ocp.args.Composite:
  """What a manager's `restore` of one step needs; `like` as for `restore`."""
  return ocp.args.Composite(
    model=ocp.args.StandardRestore(like['model']),
    training=ocp.args.StandardRestore(like['training']),
    position=ocp.args.JsonRestore(),
  )


def restore_for_inference(
  workdir: str | os.PathLike, mesh: jax.sharding.Mesh | None = None
) -> tuple[ConfigDict, dict]:
  """Config and variables of a run: the average of the parameters where the run kept one.

  Args:
    workdir: of the run.
    mesh: where the variables are put; default the first device.

  Returns:
    (config, variables), variables being the Flax dict {'params': .., ..}.

  Raises:
    FileNotFoundError: there is no run or no checkpoint in `workdir`.
    UserError: no checkpoint can be read.
  """
  config = load_config(workdir)
  mesh = mesh or sharding.make_mesh({'data': 1, 'expert': 1}, jax.local_devices()[:1])
  if not (pathlib.Path(workdir) / 'checkpoints').is_dir():
    raise FileNotFoundError(f'{workdir}/checkpoints does not exist: the run has saved nothing yet')
  # read-only: the run may be saving at this moment. Orbax warns of defaults that this excludes
  options = ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
  with _open(workdir, options) as checkpoints:
    found, _ = _newest_readable(checkpoints, lambda step: _model_args(checkpoints, step, mesh))
  if found is None:
    raise FileNotFoundError(f'{workdir}/checkpoints is empty: the run has saved nothing yet')
  variables = dict(found.model['variables'])
  if 'ema' in found.model:
    variables['params'] = found.model['ema']
  return config, variables


def _open(workdir, options):
  handlers = {
    'model': ocp.StandardCheckpointHandler(),
    'training': ocp.StandardCheckpointHandler(),
    'position': ocp.JsonCheckpointHandler(),
  }
  path = _LiteralPath(pathlib.Path(workdir).absolute()) / 'checkpoints'
  return ocp.CheckpointManager(path, options=options, item_handlers=handlers)


class _LiteralPath(type(epath.Path())):
  """A path whose own folders are names, not patterns, in `glob` too.

  Orbax finds the parts that it merges into a checkpoint by `glob`: below a folder called `run[v2]`
  it would find none, and write a checkpoint that nobody can read.
  """

  def glob(self, pattern: str):
    return (p for p in self.iterdir() if fnmatch.fnmatchcase(p.name, pattern))


def _newest_readable(checkpoints, args_of):
  """(what was restored or None, {damaged step: error}), the newest first."""
  damaged = {}
  for step in sorted(checkpoints.all_steps(), reverse=True):
    where = f'{checkpoints.directory}/{step}'
    try:
      found = checkpoints.restore(step, args=args_of(step))
    except Exception as error:  # whatever a torn file makes of the many readers below
      damaged[step] = error
      first_line = next(iter(str(error).splitlines()), '')
      logger.warning('%s cannot be read: %s %s', where, type(error).__name__, first_line)
      continue
    if damaged:
      logger.warning('falling back to checkpoint %s', where)
    return found, damaged
  if damaged:
    step, error = next(iter(damaged.items()))
    raise UserError(
      f'no checkpoint of {checkpoints.directory} can be read: steps {list(damaged)}; '
      f'step {step}: {error}'
    ) from error
  return None, {}


def _move_aside(checkpoints, steps):
  if jax.process_index() == 0:
    source = pathlib.Path(checkpoints.directory)
    target = source.parent / 'damaged_checkpoints'
    target.mkdir(exist_ok=True)
    for step in steps:
      count = len(list(target.glob(f'{step}-*')))
      (source / str(step)).rename(target / f'{step}-{count}')
  multihost_utils.sync_global_devices('damaged checkpoints moved')
  checkpoints.reload()


def _model_args(checkpoints, step, mesh):
  """Arguments to restore the model alone, its form taken from the files."""
  tree = checkpoints.item_metadata(step)['model'].tree
  tree = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)
  where = sharding.tree_sharding(mesh, tree)
  like = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, where)
  return ocp.args.Composite(model=ocp.args.StandardRestore(like))


def _flat(config, prefix='') -> dict[str, Any]:
  """{'a.b.c': value}, lists for tuples as in JSON; the order of tasks counts, as labels do."""
  flat = {f'{prefix}(order)': list(config)} if prefix == 'tasks.' else {}
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      flat |= _flat(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = json.loads(json.dumps(value))
  return flat
