"""Dynamic learning-rate adjustment (DLA; the paper's later name is DSO).

Every loss term keeps a moving average, its history. A head whose terms lie above their history
learns more slowly for this step, one below it faster; backbone and neck learn faster the better the
losses keep their proportions. All of it scales the learning rate, decoupled weight decay included.

Source: SM3Det (arXiv 2412.20665), equations 3-10, and the released hook, which differs from them
and made the published numbers: `variant='released'` is the hook, `variant='paper'` the equations.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from data_pipelines.errors import UserError

VARIANTS = ('released', 'paper')
HEAD_POLICIES = ('normal', 'reverse', 'none')
SHARED_POLICIES = ('sigmoid_kl', 'kl', 'min', 'avg', 'max', 'none')


class State(NamedTuple):
  """`count`: steps taken, int32. `history`: {term: moving average}, 0 = no valid value seen yet."""

  count: jax.Array
  history: dict[str, jax.Array]


class ScaleByDlaState(NamedTuple):
  """DLA's state and the multipliers of the last step, which the logs show."""

  dla: State
  multipliers: dict[str, jax.Array]


def init(loss_names: Iterable[str]) -> State:
  """State before the first step, in the default float type (float64 with x64 on)."""
  return State(jnp.zeros((), jnp.int32), {name: jnp.zeros((), float) for name in loss_names})


def step(
  state: State,
  losses: Mapping[str, Any],
  term_to_group: Mapping[str, str],
  temperature: float = 3.0,
  bias: float = 0.4,
  decay: float = 0.001,
  warmup_steps: int = 500,
  variant: str = 'released',
  head_policy: str = 'normal',
  shared_policy: str = 'sigmoid_kl',
  term_to_task: Mapping[str, str] | None = None,
  max_ratio: float | None = None,
) -> tuple[dict[str, jax.Array], State]:
  """Multipliers of this step's learning rates, and the next state.

  With n terms present, T the temperature, b the bias, and cur and his a term's current value and
  history, variant 'released' is (the released hook; facts of its code, not of the paper)

    his    <- (1 - decay) his + decay cur, after its use; it starts at the first valid value
    w      =  his / cur ('normal', eq. 4) or cur / his ('reverse')
    lambda =  n softmax(w / T) (eq. 5 over terms), all 1 for 'none'; a group's multiplier is the
              mean of its terms' lambdas
    D      =  KL(softmax(his) || softmax(cur)) / n
    shared =  2 sigmoid((1 - D - b) T) for 'sigmoid_kl' (eq. 9-10), 1 + (1 - D) / sqrt(T) for 'kl',
              'min', 'avg' or 'max' of the groups' multipliers, 1 for 'none'

  and every multiplier is 1 in the first `warmup_steps` steps. Variant 'paper' differs in four
  points: the softmaxes run over tasks, a task's loss being the sum of its terms and its lambda that
  of all its groups (eq. 4, 5); his includes cur before its use (eq. 3); D = KL(softmax(cur) ||
  softmax(his)), not divided (eq. 6-8); there is no delay.

  A term that is absent (or None), zero, negative or not finite takes no part in the step, and its
  history stays. A group with no term left gets 1 and takes no part in 'min', 'avg' and 'max'.

  Args:
    state: from `init` or the step before.
    losses: {term: scalar}; terms that `state` does not know are ignored.
    term_to_group: {term: group} for every term of `state`.
    temperature: T, of both the softmax and the sigmoid.
    bias: b, the consistency at which the shared multiplier is 1.
    decay: weight of the newest loss in the history.
    warmup_steps: number of steps with every multiplier 1.
    variant: 'released' or 'paper'.
    head_policy: 'normal', 'reverse' or 'none'.
    shared_policy: 'sigmoid_kl', 'kl', 'min', 'avg', 'max' or 'none'.
    term_to_task: {term: task} for variant 'paper'; by default the name up to its first '/' or '_'.
    max_ratio: upper bound of w, so that a tiny term cannot starve the rest; None = unbounded.

  Returns:
    {group: scalar, ..., 'shared': scalar} and the next state, of the same types as `state`.

  Raises:
    UserError: an unknown variant or policy, a term without a group, a group named 'shared'.
  """
  _check(state, term_to_group, variant, head_policy, shared_policy)
  names = sorted(state.history)
  past, current, valid, history, updated = _values(state, losses, names, decay)
  paper = variant == 'paper'
  tasks = term_to_task or {name: re.split('[/_]', name)[0] for name in names}
  _, units = np.unique([tasks[n] if paper else n for n in names], return_inverse=True)  # [n] -> U
  in_unit = _segment_sum(valid.astype(past.dtype), units) > 0  # [U]
  cur = jnp.where(in_unit, _segment_sum(jnp.where(valid, current, 0), units), 1)
  his = jnp.where(valid, updated if paper else history, 0)
  his = jnp.where(in_unit, _segment_sum(his, units), 1)

  lambdas = _lambdas(his, cur, in_unit, temperature, head_policy, max_ratio)[units]  # [n]
  groups, members = np.unique([term_to_group[name] for name in names], return_inverse=True)
  terms_left = _segment_sum(valid.astype(past.dtype), members)  # [G]
  means = _segment_sum(jnp.where(valid, lambdas, 0), members) / jnp.maximum(terms_left, 1)
  count = jnp.sum(valid, dtype=past.dtype)
  divergence = _kl(cur, his, in_unit) if paper else _kl(his, cur, in_unit) / jnp.maximum(count, 1)
  shared = _shared(shared_policy, means, terms_left > 0, divergence, temperature, bias)

  active = paper | (state.count >= warmup_steps)
  means = jnp.where(active & (terms_left > 0), means, 1)
  multipliers = {str(group): means[i] for i, group in enumerate(groups)}
  multipliers['shared'] = jnp.where(active & jnp.any(valid), shared, 1)
  updated = jnp.where(valid, updated, past)
  return multipliers, State(state.count + 1, {name: updated[i] for i, name in enumerate(names)})


def scale_by_dla(
  term_to_group: Mapping[str, str], param_groups: Callable[[Any], Any], **options
) -> optax.GradientTransformationExtraArgs:
  """Multiplies every parameter's update by its group's multiplier (see `step`).

  It belongs last in a chain, behind learning rate and weight decay: the released hook scales the
  learning rate of AdamW, so the strength of the decoupled decay scales too.

  Args:
    term_to_group: {loss term: group}.
    param_groups: function of the parameter tree that gives a tree of group names of the same form
      ('shared' for what belongs to no head); such as `optimizer.parameter_groups`.
    **options: those of `step`.

  Returns:
    A transform whose `update(updates, state, params=None, *, losses)` needs this step's loss terms.
    Its state is `ScaleByDlaState`.

  Raises:
    UserError: at `init`, for a parameter group that is not 'shared' and has no loss term.
  """
  groups = sorted(set(term_to_group.values()) | {'shared'})

  def init_fn(params):
    unknown = sorted(set(jax.tree.leaves(param_groups(params))) - set(groups))
    if unknown:
      raise UserError(f'parameter groups {unknown} have no loss term; groups: {groups}')
    state = init(term_to_group)
    dtype = next(iter(state.history.values())).dtype
    return ScaleByDlaState(state, {group: jnp.ones((), dtype) for group in groups})

  def update_fn(updates, state, params=None, *, losses, **extra_args):
    del params, extra_args
    multipliers, dla = step(state.dla, losses, term_to_group, **options)
    updates = jax.tree.map(
      lambda u, group: u * multipliers[group].astype(u.dtype), updates, param_groups(updates)
    )
    return updates, ScaleByDlaState(dla, multipliers)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check(state, term_to_group, variant, head_policy, shared_policy):
  for key, value, known in (
    ('variant', variant, VARIANTS),
    ('head_policy', head_policy, HEAD_POLICIES),
    ('shared_policy', shared_policy, SHARED_POLICIES),
  ):
    if value not in known:
      raise UserError(f'dla.{key}={value!r}: expected one of {", ".join(known)}')
  without = sorted(set(state.history) - set(term_to_group))
  if without:
    raise UserError(
      f'loss terms {without} have no group; groups are given for {sorted(term_to_group)}'
    )
  if 'shared' in term_to_group.values():
    raise UserError("a group of loss terms is named 'shared', the name of backbone and neck")


def _values(state, losses, names, decay):
  """Of every term [n]: past history, current loss, whether it counts, history now and next."""
  past = jnp.stack([state.history[name] for name in names])
  current = jnp.stack([_scalar(losses.get(name), past.dtype) for name in names])
  valid = jnp.isfinite(current) & (current > 0)
  current = jnp.where(valid, current, 1)
  history = jnp.where(past > 0, past, current)
  updated = jnp.where(past > 0, (1 - decay) * history + decay * current, current)
  return past, current, valid, history, updated


def _scalar(loss, dtype):
  """An absent term is as good as one that is not a number."""
  return jnp.asarray(jnp.nan if loss is None else loss, dtype)


def _segment_sum(x, segments):
  return jax.ops.segment_sum(x, segments, num_segments=int(segments.max()) + 1)


def _lambdas(his, cur, present, temperature, policy, max_ratio):
  """n softmax(w / T) over the units present; equations 4 and 5."""
  if policy == 'none':
    return jnp.ones_like(cur)
  w = his / cur if policy == 'normal' else cur / his
  w = jnp.minimum(w, jnp.finfo(w.dtype).max if max_ratio is None else max_ratio)  # never infinite
  return jnp.sum(present, dtype=w.dtype) * jax.nn.softmax(w / temperature, where=present)


def _kl(a, b, present):
  """KL(softmax(a) || softmax(b)) over the units present; equations 6 to 8."""
  log_p, log_q = (jax.nn.log_softmax(x, where=present) for x in (a, b))
  p = jnp.exp(log_p)
  return jnp.sum(jnp.where(present & (p > 0), p * (log_p - log_q), 0))


def _shared(policy, means, present, divergence, temperature, bias):
  """Multiplier of backbone and neck; equations 9 and 10 for 'sigmoid_kl'."""
  if policy == 'sigmoid_kl':
    return 2 * jax.nn.sigmoid((1 - divergence - bias) * temperature)
  if policy == 'kl':
    return 1 + (1 - divergence) / temperature**0.5
  if policy == 'none':
    return jnp.ones_like(divergence)
  if policy == 'avg':
    return jnp.mean(means, where=present)
  if policy == 'min':
    return jnp.min(means, where=present, initial=jnp.inf)
  return jnp.max(means, where=present, initial=-jnp.inf)
