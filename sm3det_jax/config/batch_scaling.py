"""Learning rate and schedule of a batch that is not the published one's size.

The same images are seen, in fewer steps: counts of steps shrink by k = batch / reference, and the
rate grows by k (linear: Goyal et al., arXiv 1706.02677, for SGD) or by its root (sqrt: Malladi et
al., arXiv 2205.10287, for Adam). What is known about batches this large is in docs/scaling.md.
"""

import logging

from sm3det_jax.config import ConfigDict, copied

FACTORS = {'none': lambda k: 1.0, 'linear': lambda k: k, 'sqrt': lambda k: k**0.5}

logger = logging.getLogger(__name__)


def scaled(config: ConfigDict) -> ConfigDict:
  """`config` with the rate and the schedule of its batch size, as `optim.lr_scaling` says.

  Scaled are `optim.lr` and `min_lr`, the steps, milestones and warm-up of `optim`, the ends of
  phases and DLA's warm-up; the result has `lr_scaling` 'none' and stays as it is when scaled again.
  Other counts of steps (logs, checkpoints) and the decays of running averages stay.
  """
  config = copied(config)
  optim, batch = config.optim, config.batch_size
  if optim.lr_scaling == 'none':
    return config
  k = batch / optim.reference_batch
  fewer = lambda steps: max(round(steps / k), 1) if steps else 0
  changed = {
    'lr': optim.lr * FACTORS[optim.lr_scaling](k),
    'min_lr': optim.min_lr * FACTORS[optim.lr_scaling](k),
    'steps': fewer(optim.steps),
    'milestones': tuple(map(fewer, optim.milestones)),
    'warmup_steps': fewer(optim.warmup_steps),
  }
  logger.info(
    'batch %d = %g x the reference %d, %s scaling: %s',
    batch, k, optim.reference_batch, optim.lr_scaling,
    ', '.join(f'{name} {optim[name]} -> {value}' for name, value in changed.items()),
  )  # fmt: skip
  optim.update(changed, lr_scaling='none', reference_batch=batch)
  config.dla.warmup_steps = fewer(config.dla.warmup_steps)
  config.phases = tuple((until and fewer(until), *rest) for until, *rest in config.phases)
  return config
