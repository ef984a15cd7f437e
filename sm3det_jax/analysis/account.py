"""`sm3det account`: parameters and multiply-accumulates of a model, by part; nothing is allocated.

Counted are the matrix products and convolutions of the traced evaluation program as an accelerator
runs it; of a model that does not detect, those of its loss. Box operations and RoIAlign are not. A
part is where its parameters lie: 'backbone' (its routers and experts apart), 'neck',
'heads_<task>/<module>'.
"""

import collections
import math
import re

import jax
import jax.numpy as jnp
import ml_collections
from jax.extend import core

from data_pipelines.batch import arrays
from data_pipelines.errors import UserError
from sm3det_jax.analysis import sub_models
from sm3det_jax.config import copied
from sm3det_jax.heads import head_class
from sm3det_jax.model import Model, build

EXPERTS = ('experts_', 'spec.', 'coll.', 'shared.')  # how names of their arrays and scopes begin
EXPERT_LOOP = re.compile(r'experts_(\d+)_in_(\d+)x(\d+)')  # as `moe.dispatch` names it


def account(config: ml_collections.ConfigDict, size: tuple[int, int] | None = None) -> dict:
  """Counts the model of a checked config.

  Args:
    config: as `sm3det_jax.config.load` returns it.
    size: height, width of the image; by default each task's own.

  Returns:
    'params'; 'params_encoder', of the backbone without a mask token; 'params_active', what one
    token of the first task meets of it; 'sub_models', as `sub_models.sub_models`;
    'gmacs_three_branches', the paper's way: whole evaluation passes of every task, added
    up, in 1e9 multiply-accumulates; 'gmacs_one_image', their mean over the tasks;
    'gmacs_by_task'; 'gmacs_padding', what rows that fill up the experts' blocks can add at most;
    'parts' {part: {'params': count, 'gmacs': {task: count}}}.

  Raises:
    UserError: a size that is no multiple of 32, or a loop of unknown length with products in it.
  """
  if size and any(side < 32 or side % 32 for side in size):
    raise UserError(f'size {size[0]}x{size[1]}: both have to be multiples of 32')
  model = build(_counted(config))
  variables = jax.eval_shape(model.init, jax.random.key(0))
  params = collections.Counter()
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables['params']):
    params[_part([str(key.key) for key in path])] += leaf.size
  macs, padding = {}, 0
  for name, task in config.tasks.items():
    task = copied(task)
    task.size = size or task.size
    macs[name], more = _products(_program(model, variables, name, task), '', params)
    padding += sum(more.values())
  by_task = {name: sum(m.values()) / 1e9 for name, m in macs.items()}
  return {
    'params': params.total(),
    'params_encoder': sub_models.encoder(variables['params']),
    'params_active': sub_models.active(variables['params'], config),
    'sub_models': sub_models.sub_models(variables['params'], config),
    'gmacs_three_branches': sum(by_task.values()),
    'gmacs_one_image': sum(by_task.values()) / len(by_task),
    'gmacs_by_task': by_task,
    'gmacs_padding': padding / 1e9,
    'parts': {
      part: {'params': count, 'gmacs': {name: m[part] / 1e9 for name, m in macs.items()}}
      for part, count in params.items()
    },
  }


def table(counts: dict) -> str:
  """The counts of `account` as text: a line a part, a column a task."""
  tasks = list(counts['gmacs_by_task'])
  line = lambda name, params, macs: (
    f'{name:24}{params / 1e6:10.3f}'
    + ''.join(f'{m:10.2f}' for m in [*macs.values(), sum(macs.values())])
  )
  rows = [
    f'{"":24}{"params M":>10}' + ''.join(f'{name:>10}' for name in [*tasks, 'sum']) + '  GMAC'
  ]
  rows += [line(part, c['params'], c['gmacs']) for part, c in counts['parts'].items()]
  rows.append(line('all', counts['params'], counts['gmacs_by_task']))
  rows.append(f'one image, mean of the tasks: {counts["gmacs_one_image"]:.2f} GMAC')
  rows.append(
    f'padding of the experts’ row blocks, at most: {counts["gmacs_padding"]:.2f} GMAC more'
  )
  rows.append(
    f'encoder {counts["params_encoder"]:,}, of which one token meets {counts["params_active"]:,}'
  )
  return '\n'.join(filter(None, [*rows, sub_models.table(counts)]))


def _program(model: Model, variables, name, task):
  """What a model does with an image of a task: detection, or else the loss alone."""
  if hasattr(model, 'detect'):
    image = jax.ShapeDtypeStruct((1, *task.size, task.bands), jnp.float32)
    return jax.make_jaxpr(lambda v, x: model.detect(v, x, name))(variables, image).jaxpr
  batch = {k: jax.ShapeDtypeStruct((1, *a.shape), a.dtype) for k, a in arrays(task).items()}
  loss = lambda v, b: model.loss(v, model.prepare(b), jax.random.key(0))
  return jax.make_jaxpr(loss)(variables, {name: batch}).jaxpr


def _counted(config):
  """A copy of `config` that computes what papers count: their number of RoIs, no expert in vain."""
  config = copied(config)
  config.moe.implementation = 'blocked'
  for task in [t for t in config.tasks.values() if 'head' in t]:
    task.head.update(head_class(task.head.type).counted(task.head))
  return config


def _part(path):
  """Part of a parameter path, or of a scope in a traced program."""
  if path[0].startswith('heads_'):
    return '/'.join(path[:2])
  if any(p == 'router' or p.endswith('.router') for p in path):
    return f'{path[0]}/routers'
  return f'{path[0]}/experts' if any(p.startswith(EXPERTS) for p in path) else path[0]


def _scope_part(scope, parts):
  """Part that an operation belongs to: None outside of the modules that hold parameters."""
  path = [p.partition('.')[0] for p in scope.split('/')]
  roots = {part.partition('/')[0] for part in parts}
  starts = [i for i, p in enumerate(path) if p in roots]
  part = _part(path[starts[-1] :]) if starts else None
  return part if part in parts else None


def _products(jaxpr, scope, parts):
  """Multiply-accumulates of a jaxpr by part, and those of padding rows."""
  total, padding = collections.Counter(), collections.Counter()
  for equation in jaxpr.eqns:
    where = f'{scope}/{equation.source_info.name_stack}'
    if (count := _macs(equation)) is not None:
      if (part := _scope_part(where, parts)) is not None:
        total[part] += count
      continue
    inner = [_products(j, where, parts) for j in _inner(equation)]
    trips, spare = _trips(equation, where, any(t for t, _ in inner))
    for products, padded in inner:
      for part, count in products.items():
        total[part] += round(count * trips)
        padding[part] += round(count * spare)
      for part, count in padded.items():
        padding[part] += round(count * trips)
  return total, padding


def _macs(equation):
  """Multiply-accumulates of a product, None for anything else."""
  name, out = equation.primitive.name, equation.outvars[0].aval if equation.outvars else None
  if name == 'dot_general':
    (contracted, _), _ = equation.params['dimension_numbers']
    lhs = equation.invars[0].aval.shape
    return math.prod(out.shape) * math.prod(lhs[i] for i in contracted)
  if name == 'conv_general_dilated':
    kernel = equation.invars[1].aval.shape
    _, (features, *_), _ = equation.params['dimension_numbers']
    return math.prod(out.shape) * math.prod(kernel) // kernel[features]
  return None


def _inner(equation):
  """Jaxprs that an equation runs; of the forms for several platforms an accelerator's."""
  params = dict(equation.params)
  if platforms := params.pop('branches_platforms', None):
    best = next(i for i, names in enumerate(platforms) if names is None or 'cpu' not in names)
    params['branches'] = params['branches'][best : best + 1]
  values = jax.tree.leaves(list(params.values()), is_leaf=_is_jaxpr)
  return [v.jaxpr if isinstance(v, core.ClosedJaxpr) else v for v in values if _is_jaxpr(v)]


def _is_jaxpr(value):
  return isinstance(value, core.ClosedJaxpr | core.Jaxpr)


def _trips(equation, scope, counts):
  """How often an equation runs its body, and how often more for the sake of padding."""
  name = equation.primitive.name
  if name == 'scan':
    return equation.params['length'], 0
  if name != 'while' or not counts:
    return 1, 0
  found = EXPERT_LOOP.findall(scope)
  if not found:
    raise UserError(f'a loop of unknown length has matrix products in it: {scope}')
  choices, blocks, rows = map(int, found[-1])
  return choices / rows, blocks - choices / rows
