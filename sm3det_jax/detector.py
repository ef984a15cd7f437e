"""M2Det, the multi-modal, multi-task detector: one backbone, one neck, a head per task."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from data_pipelines.errors import UserError
from sm3det_jax import backbones, necks, weighting
from sm3det_jax.config import check, label_space, phases
from sm3det_jax.heads import head_class
from sm3det_jax.heads.common import Detections
from sm3det_jax.precision import compute
from sm3det_jax.preprocess import normalise_batch

PYRAMID_STRIDE = 32  # of the last backbone stage


class Network(nn.Module):
  """The modules and what they are called; `M2Det` says how they are used."""

  config: ml_collections.FrozenConfigDict
  classes: dict[str, int]

  def setup(self):
    c = self.config
    self.backbone = backbones.build(c, self.classes)
    self.neck = necks.build(c)
    self.heads = {
      name: head_class(task.head.type)(task.head, self.classes[name])
      for name, task in c.tasks.items()
    }
    self.balance = weighting.make(c.task_balance, tuple(c.tasks), tuple(term_groups(c)))

  def features(self, images, task):
    return self.heads[task].inputs(self.backbone({task: images}).stages[task], self.neck)

  def detect(self, images, tasks, shapes):
    stages, found = self.backbone({tasks[0]: images}).stages[tasks[0]], []
    for task in tasks:
      head = self.heads[task]
      features = head.inputs(stages, self.neck)
      found.append(head.detect(features, *_canvas(head, images), shapes))
    return tuple(found)

  def losses(self, batch, rng, sampling, phase):
    """(loss, its terms by 'task/term', metrics) in training of batches of some tasks."""
    keys = {
      name: None if rng is None else jax.random.fold_in(rng, i) for i, name in enumerate(batch)
    }
    found = self.backbone({name: b['images'] for name, b in batch.items()}, rng)
    terms = {}
    for name, targets in batch.items():
      head = self.heads[name]
      features = head.inputs(found.stages[name], self.balance.around(self.neck, name))
      canvas = _canvas(head, targets['images'])
      loss = lambda head, features, *args, canvas=canvas: head.loss(
        features, *canvas, *args, sampling
      )
      if 'heads' in self.config.remat:
        loss = nn.remat(loss)
      new = loss(head, features, targets, keys[name])
      terms |= {f'{name}/{term}': value for term, value in new.items()}
    if found.usage:
      terms['moe/balance'] = self.backbone.balance_loss(found.usage, self.config.moe.balance_weight)
    # what does not count is computed by no compiled program: nothing depends on it
    terms = {name: value for name, value in terms.items() if phases.counts(phase, name)}
    dropped = {
      f'dropped/{layer}/{name}': share.mean()
      for name in batch
      for layer, share in found.of_layers(name, 'dropped').items()
    }
    return self.balance(terms), terms, dropped

  def routing(self, images, task):
    return self.backbone({task: images}).of_layers(task, 'experts')

  def touch(self, images):
    """Runs every layer once, so that `init` makes all parameters; `images` by task."""
    stages = self.backbone(images).stages
    self.neck.touch(next(iter(stages.values())))
    for name, head in self.heads.items():
      head.touch(head.inputs(stages[name], self.neck), *_canvas(head, images[name]))
    self.balance({term: jnp.ones(()) for term in term_groups(self.config)})


def term_groups(config) -> dict[str, str]:
  """Parameter group ('task/module') of every loss term ('task/term') of a config."""
  heads = {name: task.head for name, task in config.tasks.items()}
  groups = {name: head_class(head.type).groups(head) for name, head in heads.items()}
  return {f'{name}/{t}': f'{name}/{g}' for name, terms in groups.items() for t, g in terms.items()}


def _canvas(head, images):
  """((height, width),) of a task's padded images for a head that asks for it."""
  return (images.shape[1:3],) if head.CANVAS else ()


class M2Det:
  """The model that a config describes; all state is in the `variables` that the caller holds.

  Images are normalised float32 [B, H, W, bands]; `shapes` [B, 2] give the (height, width) of what
  is not padding, None = all of it.
  """

  def __init__(self, config: ml_collections.ConfigDict):
    self.config = config
    classes = {name: len(label_space(config, name)) for name in config.tasks}
    self.network = Network(ml_collections.FrozenConfigDict(config), classes)
    self.tasks, self.dtype = tuple(config.tasks), config.dtype

  @property
  def term_groups(self) -> dict[str, str]:
    """Parameter group ('task/module') of every loss term ('task/term')."""
    return term_groups(self.config)

  def init(self, rng: jax.Array) -> dict:
    """Fresh variables, {'params': ...} and the other Flax collections of the model."""
    side = 2 * PYRAMID_STRIDE
    images = {n: jnp.zeros((1, side, side, task.bands)) for n, task in self.config.tasks.items()}
    return self.network.init(rng, images, method='touch')

  def prepare(self, batch: dict) -> dict:
    """A batch of the files' own images with normalised ones, each by its task's mean and std."""
    return normalise_batch(batch, self.config)

  def features(self, variables, images, task: str) -> list[jax.Array]:
    """FPN levels of a task [B, h, w, C], finest first (evaluation mode)."""
    return self.network.apply(
      variables, compute(images, self.dtype), self._known(task), method='features'
    )

  def detect(
    self, variables, images, task: str | tuple[str, ...], shapes=None
  ) -> Detections | tuple[Detections, ...]:
    """Detections of a task, best first, padded to the head's maximum.

    Of several tasks, whose backbone has nothing of their own, one pass gives a tuple of them.
    """
    shapes = self._shapes(images) if shapes is None else shapes
    images, alone = compute(images, self.dtype), isinstance(task, str)
    tasks = tuple(map(self._known, (task,) if alone else task))
    found = self.network.apply(variables, images, tasks, shapes, method='detect')
    return found[0] if alone else found

  def routing(self, variables, images, task: str) -> dict[str, jax.Array]:
    """Experts [B, h, w, K] of every grid cell, the best first, by MoE layer (evaluation mode)."""
    return self.network.apply(
      variables, compute(images, self.dtype), self._known(task), method='routing'
    )

  def loss(
    self, variables, batch: dict, rng=None, sampling: str = 'random', phase: int | None = None
  ):
    """Training loss of a batch of all or some tasks.

    Batch norm uses the statistics of the batch and moves its running averages, with a key or
    without; all else uses the averages.

    Args:
      variables: as `init`.
      batch: {task: {'images' [n, H, W, C], 'boxes' [n, M, 4|5], 'labels' [n, M], 'valid' [n, M],
        'shapes' [n, 2]}}, and 'ignored' [n, M] of data sets with regions to ignore.
      rng: key of gate noise, drop path and sampling; None turns the first two off.
      sampling: 'random', 'all' (every positive and negative) or 'firstk' (ascending indices).
      phase: number of the phase of `config.phases` whose terms count, by default the last.

    Returns:
      (total, (terms, updates)): the sum of all terms that count, unless `task_balance` weighs them,
      {'task/term': scalar} with 'moe/balance', and the Flax collections to replace ({} where there
      are none). With `moe.capacity_factor` a collection 'metrics' has, for the log, {'mean':
      {'dropped/<layer>/<task>': share of the choices of experts lost}}.

    Raises:
      UserError: random sampling without a key, an unknown task or sampling mode.
    """
    if sampling not in ('random', 'all', 'firstk'):
      raise UserError(f"{sampling=}: expected 'random', 'all' or 'firstk'")
    if sampling == 'random' and rng is None:
      raise UserError("sampling='random' needs an rng")
    ordered = {}
    for name in sorted(batch, key=lambda n: self.tasks.index(self._known(n))):
      b = dict(batch[name])
      b.setdefault('shapes', self._shapes(b['images']))
      ordered[name] = b | {'images': compute(b['images'], self.dtype)}
    (total, terms, dropped), updates = self.network.apply(
      variables, ordered, rng, sampling, phases.phases(self.config)[-1 if phase is None else phase],
      method='losses',
      mutable=['batch_stats'],
    )  # fmt: skip
    return total, (terms, {**updates, 'metrics': {'mean': dropped}} if dropped else updates)

  def _known(self, task):
    if task not in self.tasks:
      raise UserError(f'unknown task {task!r}; the config has {", ".join(self.tasks)}')
    return task

  @staticmethod
  def _shapes(images):
    return jnp.tile(jnp.asarray([images.shape[1:3]], jnp.int32), (len(images), 1))


def build(config: ml_collections.ConfigDict) -> M2Det:
  """The detector of a checked config.

  Raises:
    UserError: as `sm3det_jax.config.check`.
  """
  return M2Det(check(config))
