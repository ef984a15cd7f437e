"""Real processes on one machine do what one process with as many devices does."""

import functools
import json
import os
import pathlib
import shutil
import sys

import pytest
from test_launch import launch

from data_pipelines import prepare, scenes
from sm3det_jax import logs, quickstart

STEPS = pathlib.Path(__file__).with_name('steps_of_processes.py')
DEVICES = 4

CONFIG = """
from configs import quickstart

def get_config():
  c = quickstart.get_config()
  del c.tasks.rgb, c.tasks.ifr
  c.tasks.sar.update(size=(64, 64), ratio=1)
  c.tasks.sar.head.update(channels=32, convs=1, score_threshold=0.001)
  c.backbone.update(depths=(1, 1, 1, 1), channels=(8, 8, 16, 16))
  c.moe.update(blocks=((), (), (), (0,)), num_experts=4)
  c.neck.channels = 32
  c.mesh.update(data=-1, expert=2)
  c.batch_size = 8
  c.optim.update(steps=4, warmup_steps=1)
  c.dla.warmup_steps = 1
  c.log_every, c.checkpoint_every, c.keep_checkpoints = 1, 2, 9
  return c
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with prepared data, the config of a tiny run, and an `sm3det` of float64 steps."""
  root = tmp_path_factory.mktemp('processes')
  scenes.write(root / 'scenes', 0, {'train': 12, 'test': 5}, 64)
  prepare.prepare(
    quickstart.SOURCES['sar'], root / 'scenes/sar', root / 'data', name='scenes_sar',
    classes=scenes.CLASSES['sar'],
  )  # fmt: skip
  (root / 'tiny.py').write_text(CONFIG)
  program = root / 'float64/sm3det'
  program.parent.mkdir()
  program.write_text(f'#!/bin/sh\nexec {sys.executable} {STEPS} "$@"\n')
  program.chmod(0o755)
  return root


def start(folder, processes, *arguments, verb='train', programs=None):
  programs = programs or pathlib.Path(sys.executable).parent
  return launch(
    *arguments, PATH=f'{programs}:{os.environ["PATH"]}', LOGS=folder / 'logs', PROCESSES=processes,
    DEVICES=DEVICES // processes, VERB=verb,
  )  # fmt: skip


def train(folder, workdir, processes, steps):
  """The logged losses of a run that `processes` train up to `steps`."""
  start(
    folder, processes, f'--config={folder / "tiny.py"}', f'--workdir={workdir}',
    f'--config.data_root={folder / "data"}', f'--config.optim.steps={steps}',
  )  # fmt: skip
  return [{k: v for k, v in line.items() if 'loss/' in k} for line in logs.read(workdir)]


@pytest.fixture(scope='module')
def one(folder):
  """Workdir and losses of the run of one process."""
  return folder / 'one', train(folder, folder / 'one', 1, 4)


@functools.cache
def float64_steps(folder, processes):
  path = folder / f'steps_{processes}.json'
  start(folder, processes, path, programs=folder / 'float64')
  return json.loads(path.read_text())


@pytest.mark.slow
@pytest.mark.drawn(5)
@pytest.mark.parametrize('processes', [2, 4])
def test_twenty_steps_in_float64(folder, processes):
  got, want = float64_steps(folder, processes), float64_steps(folder, 1)
  assert len(got) == 20
  for i, (a, b) in enumerate(zip(got, want, strict=True)):
    for name in b:
      assert abs(a[name] - b[name]) <= 1e-8 * max(abs(b[name]), 1e-12), (i, name)


@pytest.mark.slow
@pytest.mark.drawn(3)
def test_a_run_of_four_processes_goes_on_with_two_and_with_one(folder, one):
  losses = train(folder, folder / 'four', 4, 2)
  for name, want in one[1][0].items():
    assert losses[0][name] == pytest.approx(want, rel=1e-5), name
  for processes in (2, 1):
    workdir = folder / f'then_{processes}'
    shutil.copytree(folder / 'four', workdir)
    losses = train(folder, workdir, processes, 4)
    assert len(losses) == 4
    for got, want in zip(losses, one[1], strict=True):  # other samples would give other losses
      assert got == pytest.approx(want, rel=1e-4)


@pytest.mark.slow
@pytest.mark.drawn(3)
def test_the_table_of_four_processes_is_that_of_one(folder, one):
  tables = []
  for processes in (1, 4):
    out = folder / f'table_{processes}'
    start(folder, processes, f'--workdir={one[0]}', f'--out={out}', '--json', verb='evaluate')
    tables.append(json.loads((out / 'metrics.json').read_text()))
  assert tables[0] == tables[1]
  assert tables[0]['tasks']['sar']['windows'] == 5
