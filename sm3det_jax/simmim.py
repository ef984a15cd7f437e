"""Masked-image pre-training (SimMIM, Xie et al. 2022) of several modalities: RingMoE.

A task of kind 'image' is a modality: its patch embedding, its decoder. Most cells of an image are
masked, and one linear layer reconstructs their pixels from the last map of the backbone; of a
complex SAR image (re, im of each polarisation) rather its power. arXiv 2504.03166, section 3.3.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from data_pipelines.errors import UserError
from sm3det_jax import backbones
from sm3det_jax.config import copied, phases
from sm3det_jax.config.backbones import STEM_STRIDE, stride
from sm3det_jax.layers.linear import Dense
from sm3det_jax.precision import compute, wide
from sm3det_jax.preprocess import normalise_batch

# up to 1 / sqrt(C), as the released code's framework begins convolutions
decoder_init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def mask(
  order: jax.Array,
  image: int | tuple[int, int] = 192,
  cell: int = 32,
  patch: int = 4,
  ratio: float = 0.6,
) -> jax.Array:
  """The first ceil(cells ratio) cells of an order, masked.

  Args:
    order: permutation of the cells of an image, which count row by row.
    image, cell, patch: sides in pixels; `image` may be (height, width).
    ratio: of the cells that are masked.

  Returns:
    [h / patch, w / patch], int32: 1 = masked.
  """
  rows, columns = (n // cell for n in (image if isinstance(image, tuple) else (image,) * 2))
  masked = math.ceil(rows * columns * ratio)
  cells = jnp.zeros(rows * columns, jnp.int32).at[order[:masked]].set(1).reshape(rows, columns)
  return _enlarged(cells[None], cell // patch)[0]


def power(images: jax.Array) -> jax.Array:
  """Sum of the squares of all channels: [.., C] -> [.., 1], at least float32."""
  images = wide(images)
  return (images * images).sum(-1, keepdims=True)


def to_pixels(x: jax.Array, s: int, order: str = 'dcr') -> jax.Array:
  """s x s pixels of each location: [n, h, w, s^2 C] -> [n, h s, w s, C].

  Args:
    order: of the channels, row dy and column dx of a pixel: 'dcr', (dy s + dx) C + c; 'crd',
      c s^2 + dy s + dx.

  Raises:
    UserError: another order.
  """
  if order not in ('dcr', 'crd'):
    raise UserError(f"{order=}: expected 'dcr' or 'crd'")
  n, h, w, _ = x.shape
  if order == 'crd':
    x = x.reshape(n, h, w, -1, s, s).transpose(0, 1, 4, 2, 5, 3)
  else:
    x = x.reshape(n, h, w, s, s, -1).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(n, h * s, w * s, -1)


def reconstruction_loss(
  predicted: jax.Array, target: jax.Array, mask: jax.Array, kind: str = 'l2'
) -> jax.Array:
  """How far a reconstruction is off where it could not see.

  Args:
    predicted, target: [n, H, W, C].
    mask: [n, h, w] of the patches, 1 = masked.
    kind: 'l2', mean square over what is masked; 'l1', sum |d| m / (sum m + 1e-5) / C over the
      pixels, as released.

  Raises:
    UserError: another kind.
  """
  if kind not in ('l2', 'l1'):
    raise UserError(f"{kind=}: expected 'l2' or 'l1'")
  difference = wide(predicted) - wide(target)
  m = _enlarged(mask, predicted.shape[1] // mask.shape[1]).astype(difference.dtype)[..., None]
  masked, channels = m.sum(), difference.shape[-1]
  if kind == 'l1':
    return (jnp.abs(difference) * m).sum() / (masked + 1e-5) / channels
  return (difference * difference * m).sum() / (jnp.maximum(masked, 1) * channels)


def _enlarged(x, times):
  """[n, h, w] -> [n, h times, w times]."""
  return jnp.repeat(jnp.repeat(x, times, axis=1), times, axis=2)


class Decoder(nn.Module):
  """Pixels of each location of the last map."""

  channels: int
  stride: int

  @nn.compact
  def __call__(self, x):
    features = self.stride**2 * self.channels
    return to_pixels(Dense(features, kernel_init=decoder_init, name='decoder')(x), self.stride)


class Network(nn.Module):
  """The modules and what they are called; `SimMIM` says how they are used."""

  config: ml_collections.FrozenConfigDict
  tasks: tuple[str, ...]

  def setup(self):
    c = self.config
    self.backbone = backbones.build(c, self.tasks)
    self.heads = {
      name: Decoder(1 if c.tasks[name].target == 'power' else c.tasks[name].bands, stride(c))
      for name in self.tasks
    }

  def features(self, images, masks, rng=None):
    """`backbones.stages.Output` of images and masks by task; no masks: None."""
    images = {name: compute(x, self.config.dtype) for name, x in images.items()}
    return self.backbone(images, rng, masks)

  def reconstructions(self, batch, rng=None):
    """({task: [n, H, W, targets]}, what the backbone gave)."""
    by_task = lambda key: {name: b[key] for name, b in batch.items()}
    found = self.features(by_task('images'), by_task('masks'), rng)
    return {name: self.heads[name](found.stages[name][-1]) for name in batch}, found

  def losses(self, batch, rng, phase):
    """(its terms by 'task/term', shares of choices that are lost)."""
    c = self.config
    pictures, found = self.reconstructions(batch, rng)
    terms = {}
    for name, b in batch.items():
      target = power(b['images']) if c.tasks[name].target == 'power' else b['images']
      loss = reconstruction_loss(pictures[name], target, b['masks'], c.simmim.loss)
      terms[f'{name}/reconstruction'] = loss
    if found.usage:
      terms['moe/balance'] = self.backbone.balance_loss(found.usage, c.moe.balance_weight)
    dropped = {
      f'dropped/{layer}/{name}': share.mean()
      for name in batch
      for layer, share in found.of_layers(name, 'dropped').items()
    }
    return {name: value for name, value in terms.items() if phases.counts(phase, name)}, dropped


class SimMIM:
  """The model that a config describes; all state is in the `variables` that the caller holds.

  Images are normalised float32 [n, H, W, bands].
  """

  def __init__(self, config: ml_collections.ConfigDict):
    self.config, self.tasks = config, tuple(config.tasks)
    self.network = Network(ml_collections.FrozenConfigDict(config), self.tasks)
    dropless = copied(config)
    dropless.moe.capacity_factor = 0.0
    self.evaluated = Network(ml_collections.FrozenConfigDict(dropless), self.tasks)

  @property
  def term_groups(self) -> dict[str, str]:
    """Parameter group ('task/module') of every loss term ('task/term')."""
    return {f'{name}/reconstruction': f'{name}/decoder' for name in self.tasks}

  def init(self, rng: jax.Array) -> dict:
    """Fresh variables, {'params': ..}."""
    side = stride(self.config)
    batch = {
      name: {
        'images': jnp.zeros((1, side, side, task.bands)),
        'masks': jnp.zeros((1, side // STEM_STRIDE, side // STEM_STRIDE), jnp.int32),
      }
      for name, task in self.config.tasks.items()
    }
    return self.network.init(rng, batch, method='reconstructions')

  def prepare(self, batch: dict) -> dict:
    """A batch of the files' own images with normalised ones, each by its task's mean and std."""
    return normalise_batch(batch, self.config)

  def loss(self, variables, batch: dict, rng=None, phase: int | None = None):
    """Training loss of a batch of all or some modalities.

    Args:
      variables: as `init`.
      batch: {modality: {'images' [n, H, W, bands], 'masks' [n, h, w] of patches, 1 = masked}};
        masks that are absent are drawn.
      rng: key of masks and drop path.
      phase: number of the phase of `config.phases` whose terms count, by default the last.

    Returns:
      (total, (terms, updates)): the sum of the terms {'<modality>/reconstruction', 'moe/balance'};
      updates has, for the log, with a capacity 'metrics' {'mean': {'dropped/<layer>/<modality>':
      share of the choices of experts lost}}.

    Raises:
      UserError: masks are absent and there is no key; an unknown modality.
    """
    terms, dropped = self.network.apply(
      variables,
      self.masked(batch, rng),
      rng,
      phases.phases(self.config)[-1 if phase is None else phase],
      method='losses',
    )
    return sum(terms.values()), (terms, {'metrics': {'mean': dropped}} if dropped else {})

  def reconstruct(self, variables, batch: dict) -> dict[str, jax.Array]:
    """{modality: [n, H, W, targets]} of masked images, as `loss` takes and sees them.

    Masks that are absent are drawn by `config.seed`, the same ones at each call.

    Raises:
      UserError: an unknown modality.
    """
    batch = self.masked(batch, jax.random.key(self.config.seed))
    return self.network.apply(variables, batch, method='reconstructions')[0]

  def features(
    self, variables, images: jax.Array, modality: str, masks: jax.Array | None = None
  ) -> tuple[list[jax.Array], jax.Array]:
    """What the backbone makes of images of a modality (evaluation: no choice of experts is lost).

    Returns:
      ([n, h, w, C] of each stage before its merging, without norm; that of the last one, normed).
    """
    found = self._evaluate(variables, images, modality, masks)
    taps = found.taps[modality]
    stages = [taps[f'stage{i}'] for i in range(len(self.config.backbone.depths))]
    return stages, found.stages[modality][-1]

  def routing(self, variables, images: jax.Array, modality: str) -> dict[str, jax.Array]:
    """Experts [n, h, w, K] of every grid cell by MoE layer (evaluation).

    A layer is '<block>/spec', numbers of the modality's own experts, or '<block>/coll'.
    """
    return self._evaluate(variables, images, modality, None).of_layers(modality, 'experts')

  def _evaluate(self, variables, images, modality, masks):
    images = {self._known(modality): images}
    masks = None if masks is None else {modality: masks}
    return self.evaluated.apply(variables, images, masks, method='features')

  def masked(self, batch: dict, rng: jax.Array | None) -> dict:
    """A batch as `loss` takes it, in the order of the modalities; absent masks are drawn.

    Raises:
      UserError: as `loss`.
    """
    ordered = {}
    for i, name in enumerate(sorted(batch, key=lambda n: self.tasks.index(self._known(n)))):
      images, masks = batch[name]['images'], batch[name].get('masks')
      if masks is None:
        if rng is None:
          raise UserError(f'the batch has no masks of {name!r}, and no rng to draw them')
        masks = self._draw(jax.random.fold_in(rng, i), images)
      ordered[name] = {'images': images, 'masks': masks}
    return ordered

  def _draw(self, key, images):
    c, size = self.config.simmim, images.shape[1:3]
    cells = (size[0] // c.cell) * (size[1] // c.cell)
    one = lambda k: mask(jax.random.permutation(k, cells), size, c.cell, STEM_STRIDE, c.ratio)
    return jax.vmap(one)(jax.random.split(key, len(images)))

  def _known(self, modality):
    if modality not in self.tasks:
      raise UserError(f'unknown modality {modality!r}; the config has {", ".join(self.tasks)}')
    return modality
