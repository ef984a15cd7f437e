"""A model of twenty lines that is no detector: `config.model` is all that it takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm3det_jax import checkpoint, logs, train
from sm3det_jax import config as config_lib
from sm3det_jax import model as models
from sm3det_jax.analysis import account, compile_step
from sm3det_jax.bench import train_step

SIZE = 32  # px


class MeanColour:
  """Each task's mean colour, from its mean colour."""

  def __init__(self, config):
    self.config, self.tasks = config, tuple(config.tasks)
    self.term_groups = {f'{task}/colour': f'{task}/head' for task in self.tasks}

  def init(self, rng):
    heads = {f'heads_{t}': {'head': {'bias': jnp.zeros(3)}} for t in self.tasks}
    kernel = jax.random.normal(rng, (3, 3))
    return {'params': {'backbone': {'kernel': kernel}} | heads, 'seen': {'images': jnp.int32(0)}}

  def prepare(self, batch):
    return {task: b['images'].astype(jnp.float32) / 255 for task, b in batch.items()}

  def loss(self, variables, batch, rng):
    params, seen, terms = variables['params'], variables['seen']['images'], {}
    with jax.named_scope('backbone'):
      for task, images in batch.items():
        mean = images.mean((1, 2))
        got = mean @ params['backbone']['kernel'] + params[f'heads_{task}']['head']['bias'][None]
        terms[f'{task}/colour'] = jnp.mean((got - mean) ** 2)
        seen = seen + len(images)
    brightest = jnp.stack([images.max() for images in batch.values()]).max()
    updates = {'seen': {'images': seen}, 'metrics': {'max': {'brightest': brightest}}}
    return sum(terms.values()), (terms, updates)


def colour_batches(config, step=0, host=0, hosts=1, tasks=None):
  while True:
    rng = np.random.default_rng(step)
    yield {
      name: {'images': rng.integers(0, 256, (n, SIZE, SIZE, 3), np.uint8)}
      for name, n in (('sar', 16), ('rgb', 8), ('ifr', 8))
    }
    step += 1


@pytest.fixture
def config(monkeypatch):
  monkeypatch.setitem(models.MODELS, 'colour', MeanColour)
  monkeypatch.setattr(train.mixture, 'train_batches', colour_batches)
  monkeypatch.setattr(train.mixture, 'open_tasks', lambda config: {})
  monkeypatch.setattr(train.mixture, 'fingerprint', lambda config, tasks: 'colours')
  c = config_lib.default()
  c.model, c.log_every, c.checkpoint_every = 'colour', 1, 2
  c.optim.update(steps=4, warmup_steps=0, milestones=(), lr=0.05)
  for task in c.tasks.values():
    task.size = (SIZE, SIZE)
  return config_lib.check(c)


def test_it_trains_resumes_and_starts_another_run(config, tmp_path):
  whole = train.train(config, tmp_path / 'whole')
  first = logs.read(tmp_path / 'whole')[0]
  assert whole['total'] < first['total'] and whole['brightest'] == pytest.approx(1.0, abs=1e-6)
  assert {k for k in whole if k.startswith('loss/')} == {f'loss/{t}/colour' for t in config.tasks}

  def crash(done, _):
    if done == 3:
      raise RuntimeError('crash')

  with pytest.raises(RuntimeError, match='crash'):
    train.train(config, tmp_path / 'parts', on_log=crash)
  train.train(config, tmp_path / 'parts')
  found = [checkpoint.restore_for_inference(tmp_path / name)[1] for name in ('whole', 'parts')]
  jax.tree.map(np.testing.assert_array_equal, *found)
  assert int(found[0]['seen']['images']) == 4 * 32
  other = config_lib.copied(config)
  other.init_from, other.optim.lr, other.optim.steps = str(tmp_path / 'whole'), 0.0, 1
  train.train(other, tmp_path / 'other')
  params = checkpoint.restore_for_inference(tmp_path / 'other')[1]['params']
  jax.tree.map(np.testing.assert_array_equal, params, found[0]['params'])


def test_it_compiles_for_a_slice_and_is_counted(config, monkeypatch):
  monkeypatch.setattr(compile_step, 'slice_devices', lambda _: jax.devices())
  monkeypatch.setitem(compile_step.CHIPS, 'cpu', compile_step.CHIPS['TPU v5 lite'])
  report = compile_step.compile_step(config, 'v5e:2x4')
  assert report['hbm_gib']['shortfall'] == 0 and report['devices'] == 8
  counts = account.account(config)
  assert counts['params'] == 9 + 3 * 3
  assert counts['gmacs_by_task'] == {name: 9e-9 for name in config.tasks}  # 3 x 3, an image
  assert report['flops'] == pytest.approx(6 * 9 * 32 / 8)


def test_its_step_is_timed(config, monkeypatch):
  monkeypatch.setattr(train_step.mixture, 'train_batches', colour_batches)
  assert train_step.measure(config, 2)['images_per_second'] > 0


def test_an_unknown_model_is_refused():
  c = config_lib.default()
  c.model = 'm3det'
  with pytest.raises(ValueError, match="config.model='m3det': expected 'm2det'"):
    models.build(c)
