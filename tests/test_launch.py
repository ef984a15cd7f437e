"""The launchers start what they say, and the notebook runs."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import jax
import nbclient
import nbformat
import pytest

from data_pipelines import prepare, scenes
from sm3det_jax import logs, quickstart

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = ROOT / 'launch/local_processes.sh'
CACHE = {'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir}
NOTEBOOK = ROOT / 'launch/colab/routing_statistics.ipynb'


def launch(*arguments, check=True, **environment):
  """Runs local_processes.sh; the environment's JAX_* variables do not reach it."""
  clean = {k: v for k, v in os.environ.items() if not k.startswith('JAX_')}
  done = subprocess.run(
    [SCRIPT, *map(str, arguments)],
    env={**clean, **CACHE, **{k: str(v) for k, v in environment.items()}},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert not check or not done.returncode, done.stderr[-4000:]
  return done


@pytest.fixture
def fake_sm3det(tmp_path, monkeypatch):
  """An `sm3det` that writes what it was given and does what FAIL says."""
  program = tmp_path / 'bin/sm3det'
  program.parent.mkdir()
  program.write_text("""#!/usr/bin/env bash
(env | grep ^JAX_; printf '<%s>' "$@") >"$SEEN/$JAX_PROCESS_ID"
[[ -n "${FAIL:-}" ]] || exit 0
if [[ "$FAIL" == "$JAX_PROCESS_ID" ]]; then
  until [[ -s $SEEN/pid_0 && -s $SEEN/pid_2 ]]; do sleep 0.02; done
  echo 'out of luck' >&2; exit 3
fi
echo $$ >"$SEEN/pid_$JAX_PROCESS_ID"; exec sleep 60
""")
  program.chmod(0o755)
  monkeypatch.setenv('PATH', f'{program.parent}:{os.environ["PATH"]}')
  monkeypatch.setenv('SEEN', str(tmp_path))
  monkeypatch.setenv('LOGS', str(tmp_path / 'logs'))
  return tmp_path


def test_every_process_gets_its_variables_and_the_arguments(fake_sm3det):
  launch('--config=x', '--workdir=a b', PROCESSES=3, DEVICES=2)
  seen = [(fake_sm3det / str(i)).read_text() for i in range(3)]
  assert all(s.endswith('<train><--config=x><--workdir=a b>') for s in seen)
  assert all('JAX_NUM_PROCESSES=3\n' in s and 'JAX_NUM_CPU_DEVICES=2\n' in s for s in seen)
  assert [re.search(r'JAX_PROCESS_ID=(\d)', s)[1] for s in seen] == ['0', '1', '2']
  assert len({re.search(r'COORDINATOR_ADDRESS=(.*)', s)[1] for s in seen}) == 1


def alive(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  return True


def test_one_failure_stops_the_others_and_is_the_exit_code(fake_sm3det):
  began = time.time()
  done = launch(PROCESSES=3, FAIL=1, check=False)  # ends when its children have closed their output
  assert time.time() - began < 40
  assert done.returncode == 3
  assert 'exit code 3' in done.stderr and 'out of luck' in done.stderr
  others = [int((fake_sm3det / f'pid_{i}').read_text()) for i in (0, 2)]
  deadline = time.time() + 5
  while any(map(alive, others)) and time.time() < deadline:
    time.sleep(0.05)
  assert not any(map(alive, others))


def test_dry_run_prints_every_command_and_starts_none(fake_sm3det):
  done = launch('--config=x', '--dry_run', PROCESSES=2, PORT=4321)
  lines = done.stdout.splitlines()
  assert len(lines) == 2 and not list(fake_sm3det.glob('[0-9]'))
  for i, line in enumerate(lines):
    assert f'ADDRESS=localhost:4321 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID={i}' in line
    assert line.strip().endswith('sm3det train --config=x')
  (cuda,) = launch('--dry_run', PROCESSES=1, PLATFORM='cuda').stdout.splitlines()
  assert 'JAX_PLATFORMS=cuda CUDA_VISIBLE_DEVICES=0' in cuda


@pytest.mark.parametrize(
  'environment, message',
  [({}, 'PROCESSES: how many'), ({'PROCESSES': 1, 'PLATFORM': 'abacus'}, 'expected cpu or cuda')],
)
def test_a_missing_or_unknown_variable_is_an_error(environment, message):
  done = launch('--dry_run', check=False, **environment)
  assert done.returncode != 0 and message in done.stderr


def test_scripts_parse_and_have_no_lint():
  for script in [*ROOT.glob('launch/*.sh'), ROOT / '.ci/run']:
    subprocess.run(['bash', '-n', script], check=True)
    if shutil.which('shellcheck'):
      subprocess.run(['shellcheck', script], check=True)


def test_notebook_is_stored_without_outputs():
  cells = json.loads(NOTEBOOK.read_text())['cells']
  assert not any(cell.get('outputs') or cell.get('execution_count') for cell in cells)


@pytest.mark.slow
def test_notebook_shows_participation_and_top1_share(tmp_path, monkeypatch):
  monkeypatch.setenv('STEPS', '2')
  monkeypatch.setenv('WORKDIR', str(tmp_path / 'out'))
  for name, value in {'JAX_PLATFORMS': 'cpu', **CACHE}.items():
    monkeypatch.setenv(name, value)
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  nbclient.NotebookClient(
    notebook, timeout=900, resources={'metadata': {'path': tmp_path}}
  ).execute()
  figure, table = [cell.outputs[-1].data for cell in notebook.cells[-2:]]
  assert len(figure['image/png']) > 10_000
  rows = [row.split('|')[1:-1] for row in table['text/markdown'].splitlines()[2:]]
  assert {row[2].strip() for row in rows} == {'sar', 'rgb', 'ifr'}
  top_k = {'participation': 2, 'top1': 1}
  assert {row[1].strip() for row in rows} == set(top_k)
  for row in rows:  # of the cells of one layer and modality
    total = sum(float(cell.strip(' %')) for cell in row[3:])
    assert abs(total - 100 * top_k[row[1].strip()]) < 1


TINY = """
from configs import quickstart

def get_config():
  c = quickstart.get_config()
  del c.tasks.ifr
  for task in c.tasks.values():
    task.size, task.head.channels = (128, 128), 32
    if task.box == 'obb':
      task.head.proposals.update(pre_nms=64, max_proposals=32)
      task.head.roi.update(samples=32, fc_channels=16)
  c.backbone.update(depths=(1, 1, 1, 1), channels=(8, 8, 16, 16))
  c.moe.blocks = ((), (), (), (0,))
  c.neck.channels = 32
  c.batch_size = 4
  c.optim.update(steps=3, warmup_steps=1)
  c.dla.warmup_steps = 1
  c.log_every = 1
  return c
"""


@pytest.mark.slow
def test_two_processes_train_as_two_devices_of_one_do(tmp_path, monkeypatch):
  monkeypatch.setenv('PATH', f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}')
  monkeypatch.setenv('LOGS', str(tmp_path / 'logs'))
  scenes.write(tmp_path / 'scenes', 0, {'train': 6, 'test': 1}, 128)
  for modality, form in quickstart.SOURCES.items():
    prepare.prepare(
      form, tmp_path / 'scenes' / modality, tmp_path / 'data', name=f'scenes_{modality}',
      classes=scenes.CLASSES[modality],
    )  # fmt: skip
  (tmp_path / 'tiny.py').write_text(TINY)
  lines = {}
  for processes in (1, 2):
    workdir = tmp_path / f'run_{processes}'
    launch(
      f'--config={tmp_path / "tiny.py"}', f'--workdir={workdir}',
      f'--config.data_root={tmp_path / "data"}', PROCESSES=processes, DEVICES=2 // processes,
    )  # fmt: skip
    lines[processes] = logs.read(workdir)
  assert [line['step'] for line in lines[2]] == [1, 2, 3]
  for one, two in zip(lines[1], lines[2], strict=True):
    losses = [k for k in one if k.startswith('loss/')]
    assert len(losses) == 8
    assert [two[k] for k in losses] == pytest.approx([one[k] for k in losses], rel=1e-3)
