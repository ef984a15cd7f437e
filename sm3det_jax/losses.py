"""Losses as plain functions: un-reduced, unweighted, in at least float32.

Callers multiply by weights, sum, and divide by their own normaliser.
"""

import jax
import jax.numpy as jnp

from sm3det_jax.precision import wide


def _wide(x):
  return wide(jnp.asarray(x))


def sigmoid_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Binary cross-entropy of every element; targets in [0, 1], same shape as logits."""
  logits = _wide(logits)
  targets = jnp.asarray(targets, logits.dtype)
  return jax.nn.softplus(logits) - logits * targets


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Cross-entropy [...] of logits [..., K] with integer labels [...]."""
  log_p = jax.nn.log_softmax(_wide(logits), -1)
  return -jnp.take_along_axis(log_p, labels[..., None], -1)[..., 0]


def l1(pred: jax.Array, target: jax.Array) -> jax.Array:
  """Absolute error of every element; its gradient at 0 is 0."""
  error = _wide(pred) - _wide(target)
  return error * jnp.sign(error)


def smooth_l1(pred: jax.Array, target: jax.Array, beta: float) -> jax.Array:
  """Of every element, 0.5 d^2 / beta where the error d < beta, else d - beta / 2 (Fast R-CNN).

  beta 0 is `l1`.
  """
  error = l1(pred, target)
  if not beta:
    return error
  return jnp.where(error < beta, 0.5 * error * error / beta, error - 0.5 * beta)


def sigmoid_focal(
  logits: jax.Array, labels: jax.Array, gamma: float = 2.0, alpha: float = 0.25
) -> jax.Array:
  """Focal loss [...] of logits [..., K], summed over the classes (RetinaNet, equation 5).

  Args:
    logits: [..., K], one sigmoid a class.
    labels: int [...]; K means background, whose targets are all zero.
    gamma: exponent of the modulating factor.
    alpha: weight of the target class; the others weigh 1 - alpha.
  """
  target = jax.nn.one_hot(labels, logits.shape[-1], dtype=_wide(logits).dtype)
  p = jax.nn.sigmoid(_wide(logits))
  miss = p * (1 - target) + (1 - p) * target
  weight = alpha * target + (1 - alpha) * (1 - target)
  return (weight * miss**gamma * sigmoid_cross_entropy(logits, target)).sum(-1)


def quality_focal(
  logits: jax.Array,
  labels: jax.Array,
  target_quality: jax.Array,
  num_classes: int,
  beta: float = 2.0,
) -> jax.Array:
  """Quality focal loss [...] (GFL, equation 2), summed over the classes.

  Args:
    logits: [..., num_classes].
    labels: int [...]; num_classes means background.
    target_quality: [...] in [0, 1], the IoU of a positive's decoded box; ignored for background.
    num_classes: number of classes without background.
    beta: exponent of |target - sigmoid|; the gradient flows through this factor too.
  """
  logits = _wide(logits)
  quality = jnp.asarray(target_quality, logits.dtype)[..., None]
  target = jax.nn.one_hot(labels, num_classes, dtype=logits.dtype) * quality
  scale = jnp.abs(target - jax.nn.sigmoid(logits)) ** beta
  return (scale * sigmoid_cross_entropy(logits, target)).sum(-1)


def distribution_focal(logits: jax.Array, target: jax.Array) -> jax.Array:
  """Distribution focal loss [...] (GFL, equation 6).

  Args:
    logits: [..., bins] over the distances 0, 1, ..., bins - 1.
    target: [...] distances in [0, bins - 1]; the two nearest bins share it linearly.
  """
  log_p = jax.nn.log_softmax(_wide(logits), -1)
  bins = jnp.arange(logits.shape[-1], dtype=log_p.dtype).reshape(*[1] * target.ndim, -1)
  weight = jnp.maximum(1 - jnp.abs(jnp.asarray(target, log_p.dtype)[..., None] - bins), 0)
  return -(weight * log_p).sum(-1)


def integral(logits: jax.Array, reg_max: int) -> jax.Array:
  """Expected distances [..., 4] of four distributions, logits [..., 4 * (reg_max + 1)] (GFL)."""
  logits = _wide(logits)
  p = jax.nn.softmax(logits.reshape(*logits.shape[:-1], -1, reg_max + 1), -1)
  return p @ jnp.arange(reg_max + 1, dtype=p.dtype)


def giou(pred: jax.Array, target: jax.Array) -> jax.Array:
  """1 - GIoU [...] of HBB [..., 4], in [0, 2] (Rezatofighi et al., algorithm 1).

  A box inverted along both axes has a positive area here, as in the reference.
  """
  pred, target = _wide(pred), _wide(target)
  inside = jnp.minimum(pred[..., 2:], target[..., 2:]) - jnp.maximum(pred[..., :2], target[..., :2])
  around = jnp.maximum(pred[..., 2:], target[..., 2:]) - jnp.minimum(pred[..., :2], target[..., :2])
  area = lambda sides: sides[..., 0] * sides[..., 1]
  inter = area(jnp.maximum(inside, 0))
  union = area(pred[..., 2:] - pred[..., :2]) + area(target[..., 2:] - target[..., :2]) - inter
  at_least = lambda x: jnp.where(x > 1e-6, x, 1e-6)
  union, enclosing = at_least(union), at_least(area(around))
  return 1 - inter / union + (enclosing - union) / enclosing
