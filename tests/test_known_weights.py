"""The weights that others publish: what the table says, and which of them a file is."""

import hashlib
import pathlib
import re

import numpy as np
import pytest
from test_convert import alone, facebook, of_one_task, random_state, run, shapes_of
from tiny import config_file, tiny_config

from sm3det_jax import config as config_lib
from sm3det_jax.interop import known_weights, layouts, official, recognition
from sm3det_jax.interop.known_weights import KNOWN, Known

TABLES = pathlib.Path(__file__).parents[1] / 'docs/tables.md'
DETECTORS = [k for k in KNOWN if k.detector]


def named(*names):
  return tuple(k for k in KNOWN if k.name in names)


def state_of(name):
  """A state dict of the official detector with a config, whose arrays take no memory."""
  config = config_lib.load([f'--config={name}'])
  shapes, state = shapes_of(config), {}
  for entry in official.entries(config):
    shape = layouts.get(shapes, (entry.collection, *entry.path)).shape
    state |= layouts.theirs(entry, np.broadcast_to(np.int8(0), shape))
  return state


@pytest.fixture(scope='module')
def tiny_state():
  config = tiny_config(groups=1)
  return config, random_state(config, shapes_of(config))


@pytest.mark.parametrize('known', DETECTORS, ids=lambda k: k.config)
def test_the_numbers_are_those_of_the_tables(known):
  config = {'sm3det_convnext_t': 'sm3det'}.get(known.config, known.config)
  rows = [r for r in TABLES.read_text().splitlines() if f'--config={config} --workdir' in r]
  cells = [cell.strip() for row in rows for cell in row.split('|')]
  assert known.paper and known_weights.numbers(known) in cells


def test_what_is_known_holds_together():
  swin = config_lib.load(['--config=sm3det:backbone=swin']).backbone.type  # in no table
  for k in KNOWN:
    assert k.config in {d.config for d in DETECTORS} or f'backbone={swin}' in k.config
    assert not k.sha256 or k.file.endswith(f'-{k.sha256}.pth') and len(k.sha256) == 8
    assert k.where or not k.file
  assert len({(k.name, k.where) for k in KNOWN}) == len(KNOWN)
  assert len({k.config for k in DETECTORS}) == len(DETECTORS)


def test_the_table_has_every_row(capsys):
  assert run('weights') == 0
  lines = capsys.readouterr().out.splitlines()
  for k in KNOWN:
    (line,) = [x for x in lines if k.name in x and k.config in x.split('=', 1)[-1].split()
               and x.endswith(k.file or k.config)]  # fmt: skip
    assert known_weights.numbers(k) in line
  assert known_weights.KAGGLE in lines


def test_detectors_of_one_data_set_are_told_apart(tiny_state, tmp_path, monkeypatch, caplog):
  """They have the same names; the classes tell."""
  configs = {task: alone(tiny_state[0], task) for task in ('rgb', 'ifr')}
  files = {task: config_file(tmp_path / f'{task}.py', c) for task, c in configs.items()}
  rows = tuple(Known(task, str(file)) for task, file in files.items())
  monkeypatch.setattr(known_weights, 'KNOWN', (*rows, *named('ConvNeXt-T')))
  whole = random_state(configs['ifr'], shapes_of(configs['ifr']))
  state = of_one_task(whole, 'ifr', start=0)
  with caplog.at_level('INFO'):
    found = recognition.recognise(state)
  assert 'compared with those of all known weights, for up to a minute' in caplog.text
  assert found.fits and found.words().endswith(f'those of ifr: --config={files["ifr"]}')
  gone = next(n for n in state if n.endswith('depthwise_conv.weight'))
  changed = {n: a for n, a in state.items() if n != gone} | {'neck.what': np.zeros(3)}
  found = recognition.recognise(changed)
  assert not found.fits and found.known == [rows[1]]
  assert found.words().endswith('with 1 missing, 1 unexpected')
  nothing = {f'layer{i}.conv.weight': np.zeros(3) for i in range(9)}
  for state in (nothing, nothing | {'neck.x': np.zeros(3)}):
    assert 'none of the files' in recognition.recognise(state).words()


@pytest.mark.slow
@pytest.mark.parametrize(
  'config, names',
  [
    ('sm3det_convnext_t', ['SM3Det-T']),
    ('baselines:separate,task=ifr', ['infrared alone']),
    ('baselines:dla', ['SM3Det-T, DLA only', 'simple joint training']),
    ('baselines:unidet', ['uncertainty loss', 'UniDet']),
    ('sm3det:backbone=lsknet,size=S', ['SM3Det, LSKNet-S']),
  ],
)
def test_joint_detectors_are_told_apart(config, names):
  state = state_of(config)
  if names == ['infrared alone']:
    state = of_one_task(state, 'ifr', start=0)
  if 'UniDet' in names:
    state['mtl_sigma'] = np.ones(7)  # of the uncertainty loss, which detects without it
  found = recognition.recognise(state)
  assert found.fits and sorted(k.name for k in found.known) == sorted(names)


@pytest.mark.slow
def test_backbones_of_imagenet_are_told_apart():
  for name, want in (('sm3det_convnext_t', 'ConvNeXt-T'), ('sm3det:size=B', 'ConvNeXt-B')):

    class Zeros:
      normal = staticmethod(lambda size: np.broadcast_to(np.float16(0), size))

    config = config_lib.load([f'--config={name}'])
    found = recognition.recognise(facebook(config, Zeros))
    assert found.fits and {k.name for k in found.known} == {want}


@pytest.fixture
def tiny(tiny_state, tmp_path, monkeypatch):
  """(a file of a tiny known model's weights, its state dict, its config's path)."""
  config, state = tiny_state
  path = config_file(tmp_path / 'config.py', config)
  known = Known('SM3Det-nano', str(path), 'https://x.org', 'a-12345678.npz', (1.0,), '12345678')
  monkeypatch.setattr(known_weights, 'KNOWN', (*named('infrared alone'), known))
  np.savez(tmp_path / 'a.npz', **state)
  return tmp_path / 'a.npz', state, path


def test_a_known_file_needs_no_config(tiny, tmp_path, capsys):
  file, state, config = tiny
  out = tmp_path / 'run'
  assert run('convert', '--from=official', file, '--out', out) == 0
  lines = capsys.readouterr().out.splitlines()
  sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
  assert lines[0] == f'SHA-256 {sha256}: none is known to compare it with'
  assert lines[1] == f'its arrays are those of SM3Det-nano: --config={config}'
  assert f'{len(state)} loaded' in lines[-3] and lines[-2].endswith('SM3Det-nano: 1.00')
  assert lines[-1] == f'sm3det evaluate --workdir={out} --config.data_root=data'
  assert (out / 'conversion.txt').is_file()


def test_a_file_that_fits_nothing_says_what_it_resembles(tiny, tmp_path, capsys):
  file, state, config = tiny
  gone = next(n for n in state if '.experts.3.' in n and n.endswith('weight'))
  np.savez(file, **{n: a for n, a in state.items() if n != gone})
  resembles = f'it resembles most SM3Det-nano (--config={config}), with 1 missing'
  assert run('convert', '--from=official', file, '--out', tmp_path / 'run') == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.endswith(f'which model is it? Say --config=CONFIG; {resembles}')
  arguments = ('--config', config, '--config.moe.num_experts=4', '--out', tmp_path / 'run')
  assert run('convert', '--from=official', file, *arguments) == 2
  line = capsys.readouterr().err.splitlines()[-1]
  assert 'a half-loaded model is refused' in line and line.endswith(resembles[1:])
  assert not (tmp_path / 'run').exists()


def test_a_hash_is_compared(tiny, monkeypatch, tmp_path):
  file = tiny[0]
  sha256 = known_weights.digest(file)
  known = known_weights.KNOWN[-1]
  rows = (known._replace(sha256=sha256[:8]),)
  monkeypatch.setattr(known_weights, 'KNOWN', rows)
  assert known_weights.compared('any.npz', sha256) == 'begins as that of a-12345678.npz'
  monkeypatch.setattr(known_weights, 'KNOWN', (known,))
  said = known_weights.compared('x/a-12345678.npz', sha256)
  assert re.search('begins with 12345678: this file is damaged, or another one', said)
  assert known_weights.compared('b.npz', sha256) == 'none is known to compare it with'
