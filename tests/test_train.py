"""The training loop around a toy detector: exact restarts, bad steps, signals, logs, any mesh."""

import functools
import io
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm3det_jax import checkpoint, logs, preprocess, sharding, train
from sm3det_jax import config as config_lib
from sm3det_jax.optim import optimizer, training

SIZE = 8  # px


class ToyDetector:
  """The interface of M2Det over a few numbers: heads, experts, noise and a running mean."""

  tasks = ('sar', 'rgb')
  term_groups = {'sar/cls': 'sar/bbox_head', 'rgb/rpn_cls': 'rgb/rpn_head'}

  def prepare(self, batch):
    return preprocess.normalise_batch(batch, toy_config())

  def init(self, rng):
    keys = jax.random.split(rng, 4)
    params = {
      'backbone': {
        'kernel': jax.random.normal(keys[0], (3, 4)),
        'experts_w1': jax.random.normal(keys[1], (8, 4, 2)),
        'gamma': jnp.full((4,), 1.0),  # weakly typed, as initialisers may give
      },
      'heads_sar': {'bbox_head': {'kernel': jax.random.normal(keys[2], (2,))}},
      'heads_rgb': {'rpn_head': {'kernel': jax.random.normal(keys[3], (2,))}},
    }
    return {'params': params, 'batch_stats': {'mean': jnp.zeros(())}}

  def loss(self, variables, batch, rng=None, sampling='random'):
    p, terms = variables['params'], {}
    for i, (task, term) in enumerate((('sar', 'cls'), ('rgb', 'rpn_cls'))):
      images = batch[task]['images']
      images = images + 0.1 * jax.random.normal(jax.random.fold_in(rng, i), images.shape)
      x = images.mean((1, 2)) @ p['backbone']['kernel'] * p['backbone']['gamma'][None]
      y = jnp.einsum('nc,ecd->nd', jnp.tanh(x), p['backbone']['experts_w1'])
      (head,) = p[f'heads_{task}'].values()
      target = jnp.where(batch[task]['valid'], batch[task]['boxes'][..., 0], 0).sum(1)
      terms[f'{task}/{term}'] = jnp.mean((y @ head['kernel'] - target) ** 2)
    terms['moe/balance'] = 0.01 * jnp.mean(p['backbone']['experts_w1'] ** 2)
    mean = 0.9 * variables['batch_stats']['mean'] + 0.1 * batch['sar']['images'].mean()
    return sum(terms.values()), (terms, {'batch_stats': {'mean': mean}})


def toy_config(**optim):
  config = config_lib.default()
  del config.tasks['ifr']
  config.batch_size, config.log_every, config.checkpoint_every = 24, 1, 3
  config.optim.update(steps=8, milestones=(6,), warmup_steps=3, lr=1e-2, ema=0.9)
  config.optim.update(optim)
  config.dla.warmup_steps = 2
  return config


def toy_batch(config, step, bad=()):
  rng = np.random.default_rng(step)
  batch = {}
  for task, n, box in (('sar', 16, 4), ('rgb', 8, 5)):
    batch[task] = {
      'images': rng.integers(0, 256, (n, SIZE, SIZE, 3), np.uint8),
      'boxes': rng.normal(size=(n, 2, box)).astype(np.float32),
      'labels': np.zeros((n, 2), np.int32),
      'valid': rng.random((n, 2)) < 0.5,
      'shapes': np.full((n, 2), SIZE, np.int32),
    }
  if step in bad:
    batch['sar']['boxes'][...] = np.nan
    batch['sar']['valid'][...] = True
  return batch


@pytest.fixture
def toy(monkeypatch):
  """Sets the toy in place of detector and data; call it with the steps of bad batches."""

  def use(bad=(), fingerprint='data'):
    def batches(config, step=0, host=0, hosts=1, tasks=None):
      while True:
        parts = toy_batch(config, step, bad)
        yield jax.tree.map(lambda x: np.split(x, hosts)[host], parts)
        step += 1

    monkeypatch.setattr(train, 'build', lambda config: ToyDetector())
    monkeypatch.setattr(train.mixture, 'train_batches', batches)
    monkeypatch.setattr(train.mixture, 'open_tasks', lambda config: {})
    monkeypatch.setattr(train.mixture, 'fingerprint', lambda config, tasks: fingerprint)

  use()
  return use


def _lines(workdir):
  """Logged metrics without those that measure time."""
  drop = ('images_per_second', 'data_wait')
  return [{k: v for k, v in line.items() if k not in drop} for line in logs.read(workdir)]


def _final(config, workdir):
  detector = ToyDetector()
  tx = optimizer.build(config, detector.term_groups)
  mesh = sharding.make_mesh(config.mesh)
  with checkpoint.manager(workdir) as manager:
    return checkpoint.restore(manager, training.abstract_state(config, detector, tx, mesh))


def _assert_same_run(config, a, b):
  assert _lines(a) == _lines(b)
  (state_a, position_a), (state_b, position_b) = _final(config, a), _final(config, b)
  assert position_a == position_b
  jax.tree.map(np.testing.assert_array_equal, state_a, state_b)


@pytest.fixture(scope='module')
def whole_run(tmp_path_factory):
  """An uninterrupted run, (workdir, its last metrics)."""
  workdir = tmp_path_factory.mktemp('whole')
  with pytest.MonkeyPatch.context() as patch:
    toy.__wrapped__(patch)()
    return workdir, train.train(toy_config(), workdir)


def test_metrics_and_logs(whole_run):
  workdir, metrics = whole_run
  lines = logs.read(workdir)
  assert [line['step'] for line in lines] == list(range(1, 9))
  assert {k: v for k, v in lines[-1].items() if k != 'step'} == metrics
  assert lines[0]['lr'] == pytest.approx(1e-2 / 3) and lines[5]['lr'] == pytest.approx(1e-2)
  assert lines[6]['lr'] == pytest.approx(1e-3)  # the step after the milestone
  assert lines[1]['multiplier/shared'] == 1 < lines[2]['multiplier/shared']
  terms = ('loss/sar/cls', 'loss/rgb/rpn_cls', 'loss/moe/balance')
  assert lines[3]['total'] == pytest.approx(sum(lines[3][t] for t in terms), rel=1e-6)
  assert metrics['total'] < 0.7 * lines[0]['total'] and metrics['skipped'] == 0
  assert list((workdir / 'tensorboard').iterdir())
  config, variables = checkpoint.restore_for_inference(workdir)
  state, position = _final(config, workdir)
  assert position == {'step': 8, 'seed': 0, 'fingerprint': 'data'}
  jax.tree.map(np.testing.assert_array_equal, variables['params'], state['model']['ema'])


SHOWN = {
  'total': 3.0, 'loss/sar/cls': 0.5, 'loss/sar/bbox': 0.25, 'loss/rgb/cls': 2.25, 'lr': 0.1,
  'multiplier/shared': 1.5, 'images_per_second': 2.0,
}  # fmt: skip


def test_a_file_gets_a_short_line_an_interval(tmp_path, caplog, capfd, monkeypatch):
  monkeypatch.setenv('FORCE_COLOR', '1')  # as some schedulers do
  with caplog.at_level('INFO'), logs.Logs(tmp_path, 0, 2) as log:
    log.write(1, SHOWN)
    log.write(2, SHOWN)
  line = 'loss 3 (sar 0.75 rgb 2.25)  lr 0.1  2.0 images/s'
  assert caplog.messages == [f'step 1/2: {line}', f'step 2/2: {line}']
  assert capfd.readouterr() == ('', '')
  assert logs.read(tmp_path)[1]['multiplier/shared'] == 1.5


def test_a_terminal_gets_a_bar_and_no_lines(tmp_path, caplog, monkeypatch):
  class Terminal(io.StringIO):
    isatty = lambda self: True

  terminal = Terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)
  monkeypatch.setenv('TERM', 'xterm')
  with caplog.at_level('INFO'), logs.Logs(tmp_path, 0, 2) as log:
    log.write(1, SHOWN)
  assert not caplog.messages
  shown = terminal.getvalue()
  assert '━' in shown and '1/2' in shown and 'sar 0.75' in shown and '1.5' not in shown


def test_sigterm_saves_and_the_run_goes_on_exactly(toy, whole_run, tmp_path):
  before = signal.getsignal(signal.SIGTERM)

  def stop(done, _):
    if done == 5:
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(SystemExit) as stopped:
    train.train(toy_config(), tmp_path, on_log=stop)
  assert stopped.value.code == 143 and signal.getsignal(signal.SIGTERM) == before
  assert [line['step'] for line in logs.read(tmp_path)] == [1, 2, 3, 4, 5]
  again = []
  train.train(toy_config(), tmp_path, on_log=lambda done, _: again.append(done))
  assert again == [6, 7, 8]
  _assert_same_run(toy_config(), tmp_path, whole_run[0])


def test_crash_goes_on_from_the_last_checkpoint(toy, whole_run, tmp_path):
  def crash(done, _):
    if done == 5:
      raise RuntimeError('crash')

  with pytest.raises(RuntimeError, match='crash'):
    train.train(toy_config(), tmp_path, on_log=crash)
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 6, "tot')  # a line torn by the crash
  again = []
  train.train(toy_config(), tmp_path, on_log=lambda done, _: again.append(done))
  assert again == [4, 5, 6, 7, 8]
  _assert_same_run(toy_config(), tmp_path, whole_run[0])


def test_finished_run_gives_its_metrics_and_more_steps_go_on(toy, tmp_path):
  first = train.train(toy_config(steps=3), tmp_path)
  assert train.train(toy_config(steps=3), tmp_path) == first
  train.train(toy_config(steps=4), tmp_path)
  assert [line['step'] for line in logs.read(tmp_path)] == [1, 2, 3, 4]


def test_changed_data_are_refused(toy, tmp_path):
  train.train(toy_config(steps=1), tmp_path)
  toy(fingerprint='other')
  with pytest.raises(ValueError, match='have changed since step 1 .fingerprint data then, other'):
    train.train(toy_config(steps=2), tmp_path)


def test_batch_must_divide(toy, tmp_path):
  config = toy_config()
  config.batch_size = 12
  with pytest.raises(ValueError, match='8 devices'):
    train.train(config, tmp_path)
  assert not list(tmp_path.iterdir())


def test_a_bad_step_changes_nothing_but_its_count(toy, tmp_path):
  toy(bad=[2])
  config = toy_config(steps=3)
  config.checkpoint_every = 1
  config.keep_checkpoints = 9
  metrics = train.train(config, tmp_path)
  detector = ToyDetector()
  tx = optimizer.build(config, detector.term_groups)
  like = training.abstract_state(config, detector, tx, sharding.make_mesh(config.mesh))
  with checkpoint.manager(tmp_path, 9) as manager:
    bad, position = checkpoint.restore(manager, like)
    good = manager.restore(2, args=checkpoint.restore_args(like))
  assert position['step'] == 3 and metrics['skipped'] == 1
  jax.tree.map(np.testing.assert_array_equal, bad['model'], good.model)
  jax.tree.map(np.testing.assert_array_equal, bad['training']['opt'], good.training['opt'])
  counts = [int(bad['training'][k]) for k in ('step', 'skipped', 'bad_in_a_row')]
  assert counts == [3, 1, 1]
  lines = logs.read(tmp_path)
  assert lines[2]['total'] is None and lines[2]['loss/sar/cls'] is None  # valid JSON
  assert lines[2]['lr'] == pytest.approx(lines[1]['lr'] + 1e-2 * 2 / 9)


def test_ten_bad_steps_in_a_row_end_the_run(toy, tmp_path):
  toy(bad=range(1, 100))
  with pytest.raises(FloatingPointError, match='10 steps in a row up to 11 .*: loss/sar/cls; '):
    train.train(toy_config(steps=50), tmp_path)
  dump = json.loads((tmp_path / 'not_finite_11.json').read_text())
  assert dump['loss/sar/cls'] == 'nan' and dump['skipped'] == '10.0'


@functools.cache
def _two_steps(data, expert):
  config = toy_config()
  detector, mesh = ToyDetector(), sharding.make_mesh({'data': data, 'expert': expert})
  tx = optimizer.build(config, detector.term_groups)
  state = training.create_sharded_state(config, detector, tx, mesh)
  with jax.set_mesh(mesh):
    step = training.sharded_step(config, detector, tx, mesh)
    types, metrics = [jax.tree.map(lambda a: (jax.typeof(a), a.sharding), state)], []
    for i in range(2):
      state, m = step(state, sharding.put_batch(toy_batch(config, i), mesh))
      types.append(jax.tree.map(lambda a: (jax.typeof(a), a.sharding), state))
      metrics.append(jax.device_get(m))
    assert step._cache_size() == 1
  return types, metrics, jax.device_get(state)


@pytest.mark.parametrize('data, expert', [(8, 1), (2, 4), (1, 8)])
def test_every_mesh_trains_alike_and_keeps_its_types(data, expert):
  types, metrics, state = _two_steps(data, expert)
  assert types[0] == types[1] == types[2]
  _, want_metrics, want = _two_steps(1, 1)
  close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)
  jax.tree.map(close, metrics, want_metrics)
  jax.tree.map(close, state, want)


PROCESS = """
import os, pathlib, signal, sys
sys.path.insert(0, sys.argv[1])
import pytest, test_train
from sm3det_jax import train
test_train.toy.__wrapped__(pytest.MonkeyPatch())()
kill = lambda done, _: done == int(sys.argv[3]) and os.kill(os.getpid(), signal.SIGKILL)
train.train(test_train.toy_config(steps=5), pathlib.Path(sys.argv[2]), on_log=kill)
"""


def _start(workdir, killed_at=0, **variables):
  """A process that trains the toy for 5 steps, on 8 devices in all."""
  command = [sys.executable, '-c', PROCESS, str(pathlib.Path(__file__).parent), str(workdir)]
  return subprocess.Popen(
    [*command, str(killed_at)], env=os.environ | {'JAX_PLATFORMS': 'cpu'} | variables
  )


@pytest.mark.slow
@pytest.mark.parametrize('step', [3, 4])  # before the first checkpoint, and while it is written
def test_killed_process_goes_on_exactly(toy, whole_run, tmp_path, step):
  process = _start(tmp_path, step, JAX_NUM_CPU_DEVICES='8')
  assert process.wait(300) == -signal.SIGKILL
  train.train(toy_config(), tmp_path)
  _assert_same_run(toy_config(), tmp_path, whole_run[0])


@pytest.mark.slow
def test_two_processes_then_one(toy, whole_run, tmp_path):
  """Two hosts train as one does, save together, and one goes on where they stopped."""
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = s.getsockname()[1]
  running = []
  for i in range(2):
    variables = {
      'JAX_COORDINATOR_ADDRESS': f'localhost:{port}', 'JAX_NUM_PROCESSES': '2',
      'JAX_PROCESS_ID': str(i), 'JAX_NUM_CPU_DEVICES': '4',
      'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo',
    }  # fmt: skip
    running.append(_start(tmp_path, **variables))
  assert [process.wait(300) for process in running] == [0, 0]
  assert [line['step'] for line in logs.read(tmp_path)] == [1, 2, 3, 4, 5]
  train.train(toy_config(), tmp_path)
  for got, want in zip(_lines(tmp_path), _lines(whole_run[0]), strict=True):
    assert got == pytest.approx(want, rel=1e-4)


def test_normalise_by_hand():
  images = np.zeros((2, 2, 3, 1), np.uint16)
  images[0], images[1, 0, 1] = 1000, 3000
  got = preprocess.normalise(images, (2000.0,), (500.0,))
  assert got.dtype == jnp.float32
  np.testing.assert_array_equal(got[0], -2)
  np.testing.assert_array_equal(got[1, ..., 0], [[-4, 2, -4], [-4, -4, -4]])
  shapes = np.array([[2, 3], [1, 2]], np.int32)
  got = preprocess.normalise(images, (2000.0,), (500.0,), shapes)
  np.testing.assert_array_equal(got[0], -2)
  np.testing.assert_array_equal(got[1, ..., 0], [[-4, 2, 0], [0, 0, 0]])  # padding stays zero


def test_normalise_batch_uses_each_task(tmp_path):
  config = toy_config()
  config.tasks.rgb.mean, config.tasks.rgb.std = (1.0, 2.0, 3.0), (1.0, 2.0, 4.0)
  batch = toy_batch(config, 0)
  got = preprocess.normalise_batch(batch, config)
  want = (batch['rgb']['images'].astype(np.float32) - [1, 2, 3]) / [1, 2, 4]
  np.testing.assert_allclose(got['rgb']['images'], want, rtol=1e-6)
  want = (batch['sar']['images'] - np.array(config_lib.IMAGENET_MEAN)) / config_lib.IMAGENET_STD
  np.testing.assert_allclose(got['sar']['images'], want, rtol=1e-5, atol=1e-5)
  assert got['sar']['boxes'] is batch['sar']['boxes']


def test_a_run_starts_from_what_init_from_names_and_goes_on_without_it(toy, tmp_path):
  train.train(toy_config(steps=2), tmp_path / 'first')
  want = checkpoint.restore_for_inference(tmp_path / 'first')[1]['params']
  config = toy_config(lr=0.0, steps=1)
  config.init_from = str(tmp_path / 'first')
  train.train(config, tmp_path / 'second')
  got = checkpoint.restore_for_inference(tmp_path / 'second')[1]['params']
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), got, want)
  (tmp_path / 'first').rename(tmp_path / 'gone')
  config.optim.steps = 2
  train.train(config, tmp_path / 'second')
  with pytest.raises(FileNotFoundError):
    train.train(config, tmp_path / 'third')
