"""One step of training: the state, where its arrays lie, the loss, its gradient, the update."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sm3det_jax import sharding
from sm3det_jax.model import Model
from sm3det_jax.optim import accumulate, optimizer, phases

Optimizer = optax.GradientTransformationExtraArgs


def create_state(config: ConfigDict, model: Model, tx: Optimizer) -> dict:
  """State before the first step: what a checkpoint holds, but for the data position."""
  variables = model.init(jax.random.fold_in(jax.random.key(config.seed), 0))
  variables = jax.tree.map(lambda x: jnp.asarray(x, x.dtype), variables)  # no weak types
  kept = {'variables': variables}
  if config.optim.ema:
    kept['ema'] = jax.tree.map(jnp.copy, variables['params'])
  training = {'opt': tx.init(variables['params'])}
  training |= {name: jnp.zeros((), jnp.int32) for name in ('step', 'skipped', 'bad_in_a_row')}
  return {'model': kept, 'training': training}


def abstract_state(config: ConfigDict, model: Model, tx: Optimizer, mesh: Mesh) -> dict:
  """`create_state`'s shapes, types and shardings."""
  like = jax.eval_shape(lambda: create_state(config, model, tx))
  where = sharding.tree_sharding(mesh, like)
  if config.optim.zero1:
    opt = where['training']['opt']
    where['training']['opt'] = sharding.spread(mesh, opt, like['training']['opt'])
  return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), like, where)


def create_sharded_state(config: ConfigDict, model: Model, tx: Optimizer, mesh: Mesh) -> dict:
  """`create_state` made where it is to lie, never whole on one device."""
  where = jax.tree.map(lambda a: a.sharding, abstract_state(config, model, tx, mesh))
  # hundreds of small kernels that run once: XLA:CPU takes four times as long to optimise them
  options = {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else None
  create = jax.jit(
    lambda: create_state(config, model, tx), out_shardings=where, compiler_options=options
  )
  return create()


def sharded_step(
  config: ConfigDict, model: Model, tx: Optimizer, mesh: Mesh, phase: int | None = None
) -> Callable:
  """`train_step`, compiled for a mesh; it takes the state's buffers. Call it in `jax.set_mesh`."""
  where = jax.tree.map(lambda a: a.sharding, abstract_state(config, model, tx, mesh))
  return jax.jit(
    train_step(config, model, tx, phase),
    donate_argnums=0,
    in_shardings=(where, sharding.batch_sharding(mesh, config.optim.accumulate)),
    out_shardings=(where, sharding.replicated(mesh)),
  )


def loss_function(config: ConfigDict, model: Model, phase: int | None = None) -> Callable:
  """The loss of a raw batch: function of (params, variables, batch, step), as `model.loss`."""
  options = {'phase': phase} if config.phases else {}

  def loss(params, variables, batch, step):
    # Never carried, so that a restart needs the step alone; 0 is the initialisation's.
    rng = jax.random.fold_in(jax.random.key(config.seed), step + 1)
    return model.loss({**variables, 'params': params}, model.prepare(batch), rng, **options)

  return loss


def train_step(
  config: ConfigDict, model: Model, tx: Optimizer, phase: int | None = None
) -> Callable:
  """The step of a phase (by default the last): (state, raw batch) -> (state, metrics of this step).

  Metrics are {kind: {name: scalar}}, a kind being what becomes of them in a log, see `logs.KINDS`.
  """
  loss = loss_function(config, model, phase)
  lr = optimizer.schedule(config.optim)

  def step(state, batch):
    old, training = state['model'], state['training']
    variables, params = old['variables'], old['variables']['params']
    moving, kept = phases.moving(params, config, phase), phases.kept(params, config)
    whole = lambda part, *args: loss(phases.merge(part, params), *args)
    gradient = jax.value_and_grad(whole, has_aux=True)
    if config.optim.accumulate > 1:
      gradient = accumulate.mean_gradient(gradient, config.optim.accumulate)
    trained = phases.select(moving, params)
    (total, (terms, changed)), grads = gradient(trained, variables, batch, training['step'])
    changed = dict(changed)
    own = changed.pop('metrics', {})
    grad_norm = optimizer.gradient_norm(grads)
    finite = jnp.isfinite(total) & jnp.isfinite(grad_norm)
    updates, opt = tx.update(grads, training['opt'], params, losses=terms, phase=phase)
    trained = optax.apply_updates(trained, phases.select(moving, updates))
    params = phases.merge(trained, params)  # what is frozen stays, bit for bit
    new = {'variables': {**variables, **changed, 'params': params}}
    if config.optim.ema:
      ends = phases.select(kept, params), phases.select(kept, old['ema'])
      ema = optax.incremental_update(*ends, 1 - config.optim.ema)
      new['ema'] = phases.merge(ema, old['ema'])
    new, opt = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old), (new, opt), (old, training['opt'])
    )
    bad = (~finite).astype(jnp.int32)
    rate = lr(training['step'] - training['skipped'])
    training = {
      'opt': opt,
      'step': training['step'] + 1,
      'skipped': training['skipped'] + bad,
      'bad_in_a_row': (training['bad_in_a_row'] + bad) * bad,
    }
    metrics = {
      'mean': {'total': total, 'grad_norm': grad_norm},
      'last': {'lr': rate, 'skipped': training['skipped']},
      'max': {'bad_in_a_row': training['bad_in_a_row']},
    }
    metrics['mean'] |= {f'loss/{name}': value for name, value in terms.items()}
    metrics['last'] |= {f'multiplier/{k}': v for k, v in optimizer.multipliers(opt).items()}
    metrics = {kind: values | own.get(kind, {}) for kind, values in metrics.items()}
    return {'model': new, 'training': training}, metrics

  return step
