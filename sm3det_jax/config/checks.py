"""What a config must hold to: `check` refuses the rest, in one line that says what is allowed.

Every key by itself is in `keys`, what only a detector has in `detector_checks`; here the keys that
every model has are judged with each other.
"""

from ml_collections import ConfigDict

from data_pipelines.errors import UserError
from sm3det_jax.config import detector_checks, keys, phases


def check(config: ConfigDict) -> ConfigDict:
  """Returns `config` if it holds together.

  Raises:
    UserError: a key or value that cannot be, whatever the others are (`keys.check`), or values
      that contradict each other.
  """
  keys.check(config)
  if not len(config.tasks):
    raise UserError('config.tasks is empty: a model needs at least one task')
  for name, task in config.tasks.items():
    _check_task(f'config.tasks.{name}', task)
  _check_optimizer(config.optim)
  phases.check(config)
  _check_batch(config)
  if config.model == 'm2det':
    detector_checks.check(config)
  return config


def _check_task(where, c):
  if not len(c.mean) == len(c.std) == c.bands:
    raise UserError(f'{where}: bands={c.bands} but {len(c.mean)} means and {len(c.std)} stds')
  if sum(c.train.flip) > 1 + 1e-6:
    raise UserError(f'{where}.train.flip={c.train.flip}: three probabilities that sum to at most 1')
  for part in ('train', 'test'):
    tile = c[part].tile
    if tile.size and tile.overlap >= tile.size:
      raise UserError(
        f'{where}.{part}.tile: overlap={tile.overlap} is not less than size={tile.size}'
      )


def _check_optimizer(c):
  if list(c.milestones) != sorted(c.milestones):
    raise UserError(f'config.optim.milestones={c.milestones}: expected in ascending order')


def _check_batch(config):
  ratios, micro = [c.ratio for c in config.tasks.values()], config.optim.accumulate
  if config.sampling == 'random' and micro > 1:
    raise UserError(
      "config.sampling='random' gives micro-batches of several mixes, which do not add up: set "
      f'config.optim.accumulate=1, not {micro}'
    )
  if config.batch_size % (micro * sum(ratios)):
    raise UserError(
      f'config.batch_size={config.batch_size} is not a multiple of '
      f'{f"{micro} micro-batches x " if micro > 1 else ""}'
      f'{" + ".join(map(str, ratios))} = {sum(ratios)}, one group of images'
    )
