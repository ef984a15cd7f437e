"""What a config must hold to: `check` refuses the rest, in one line that says what is allowed.

Every key by itself is in `keys`, what only a detector has in `detector_checks`; here the keys that
every model has are judged with each other.
"""

from ml_collections import ConfigDict

from data_pipelines.errors import UserError
from data_pipelines.images.statistics import PERCENTILES
from sm3det_jax.config import detector_checks, keys, phases, simmim_checks


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
  elif config.model == 'simmim':
    simmim_checks.check(config)
  return config


def _check_task(where, c):
  if not len(c.mean) == len(c.std) == c.bands:
    raise UserError(f'{where}: bands={c.bands} but {len(c.mean)} means and {len(c.std)} stds')
  if sum(c.train.flip) > 1 + 1e-6:
    raise UserError(f'{where}.train.flip={c.train.flip}: three probabilities that sum to at most 1')
  for key, ends in c.train.crop.items() if c.kind == 'image' else ():
    if len(ends) not in (0, 2) or list(ends) != sorted(ends):
      raise UserError(f'{where}.train.crop.{key}={tuple(ends)}: the least and the largest')
  _check_input(f'{where}.input', c.input, c.bands)
  for part in ('train', 'test'):
    tile = c[part].tile
    if tile.size and tile.overlap >= tile.size:
      raise UserError(
        f'{where}.{part}.tile: overlap={tile.overlap} is not less than size={tile.size}'
      )


def _check_input(where, c, bands):
  if len(c.bands) not in (0, 1, bands):
    raise UserError(
      f'{where}.bands={tuple(c.bands)} are {len(c.bands)}, the task has bands={bands}: name as '
      'many, or one for all'
    )
  if c.range == 'as_is':
    for key in ('low', 'high'):
      if len(c[key]):
        raise UserError(f"{where}.{key}={tuple(c[key])} has no effect: set {where}.range='fixed'")
    if c.unit != 'as_is':
      raise UserError(
        f'{where}.unit={c.unit!r} needs an end below, as 0 has no decibels: set {where}.range='
        "'percentiles', or 'fixed' with low and high in decibels"
      )
    return
  if not set(c.percentiles) <= set(PERCENTILES) or c.percentiles[0] >= c.percentiles[1]:
    known = ', '.join(f'{p:g}' for p in PERCENTILES)
    raise UserError(f'{where}.percentiles={tuple(c.percentiles)}: two of {known}, the lower first')
  if c.range == 'percentiles' and not len(c.low) + len(c.high):
    return  # they come from the data set
  if not len(c.low) == len(c.high) in (1, bands):
    raise UserError(
      f'{where}: low={tuple(c.low)} and high={tuple(c.high)}: both of each of the {bands} bands, '
      'or one for all'
    )
  if any(low >= high for low, high in zip(c.low, c.high, strict=True)):
    raise UserError(f'{where}: low={tuple(c.low)} is not below high={tuple(c.high)}')


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
