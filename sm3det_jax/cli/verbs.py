"""The verbs of `sm3det`: what each one reads from the command line, and whom it calls."""

import importlib
import json
import pathlib
import sys
from collections.abc import Callable
from typing import NamedTuple

from data_pipelines.errors import UserError

JSON = 'one line of JSON, the last of the output'


class Verb(NamedTuple):
  """A row of `VERBS`."""

  run: Callable  # parsed arguments -> exit status, None for 0
  help: str
  add_arguments: Callable = lambda parser: None
  workdir: str = 'needed'  # or 'optional', 'none'
  takes_config: bool = False  # --config.a.b=c


def _folder(path):
  """The folder, made now: one that cannot be is told before the work, not after it."""
  pathlib.Path(path).mkdir(parents=True, exist_ok=True)
  return path


def _quickstart_arguments(parser):
  from sm3det_jax.config import command_line

  parser.set_defaults(workdir='sm3det_quickstart')
  steps = 'training steps, instead of the config’s'
  parser.add_argument('--steps', type=command_line.count, help=steps)


def _quickstart(args):
  from sm3det_jax import config

  c = config.load(['--config=quickstart', *args.overrides])
  from sm3det_jax import quickstart
  from sm3det_jax.config.small import shortened

  counts = quickstart.scene_counts(c)
  if args.steps is not None:
    c = shortened(c, args.steps)
  print(quickstart.run(c, _folder(args.workdir), counts))


def _prepare(args):
  from data_pipelines import prepare_command

  print(prepare_command.show(args))


def _dataset(args):
  from data_pipelines import dataset_command

  print(dataset_command.run(args).table())


def _doctor(args):
  from sm3det_jax import config
  from sm3det_jax.analysis.doctor import command

  c = config.load(args.overrides) if args.overrides else None
  report = command.run(args, c)
  print(report.table())
  return int(args.strict and report.wrong)


def _train(args):
  from sm3det_jax import config

  c = config.load(args.overrides)
  from data_pipelines import mixture
  from sm3det_jax import sharding, train
  from sm3det_jax.analysis import coverage

  sharding.start_processes()
  tasks = mixture.open_tasks(c)
  mixture.warn_of_missing_tests(c)
  coverage.report(tasks)
  train.train(c, args.workdir, tasks=tasks)


def _pretrain(args):
  from sm3det_jax import config

  c = config.load(args.overrides)
  from sm3det_jax import pretrain

  print(pretrain.run(c, args.workdir))


def _evaluate_arguments(parser):
  from sm3det_jax.config import command_line

  command_line.add_tta(parser)
  parser.add_argument('--split', help='of every task, instead of its test split')
  parser.add_argument('--out', help='folder of the results; by default the workdir')
  parser.add_argument('--json', action='store_true', help=JSON)


def _evaluate(args):
  import rich

  from sm3det_jax import checkpoint, config, evaluate, sharding
  from sm3det_jax.metrics import table
  from sm3det_jax.prediction import tta

  augmentation = tta.parse(args.tta, args.tta_merge)
  sharding.start_processes()
  c = config.override(checkpoint.load_config(args.workdir), args.overrides)
  mesh = sharding.evaluation_mesh(c.mesh)
  out = _folder(args.out or args.workdir)
  _, variables = checkpoint.restore_for_inference(args.workdir, mesh)
  options = dict(split=args.split, out_dir=out, augmentation=augmentation)
  metrics = evaluate.evaluate(c, variables, mesh=mesh, progress=not args.json, **options)
  rich.print(table.render(metrics), file=sys.stderr if args.json else sys.stdout)
  if args.json:
    print(json.dumps(metrics))


def _routing_arguments(parser):
  parser.add_argument('--split', help='of every task, instead of its test split')
  parser.add_argument('--out', help='folder of the results; by default WORKDIR/routing')


def _routing(args):
  from sm3det_jax import checkpoint, config
  from sm3det_jax.analysis import routing

  c = config.override(checkpoint.load_config(args.workdir), args.overrides)
  out = _folder(args.out or f'{args.workdir}/routing')
  _, variables = checkpoint.restore_for_inference(args.workdir)
  print(routing.write(routing.measure(c, variables, args.split), out))


def _account_arguments(parser):
  from sm3det_jax.config import command_line

  size = 'HxW of the image; by default each task’s own'
  parser.add_argument('--size', type=command_line.size, help=size)
  parser.add_argument('--json', action='store_true', help=JSON)


def _account(args):
  from sm3det_jax import config

  c = config.load(args.overrides)
  from sm3det_jax.analysis import account

  counts = account.account(c, args.size)
  print(json.dumps(counts) if args.json else account.table(counts))


def _weights(args):
  from sm3det_jax.interop import known_weights

  print(known_weights.table())


def _compile_arguments(parser):
  from sm3det_jax.config import command_line

  topology = 'kind and shape, such as v5e:16x16 or v5p:8x8x8'
  parser.add_argument('--topology', required=True, help=topology)
  axes = 'such as data:64,expert:4; by default config.mesh'
  parser.add_argument('--mesh', type=command_line.mesh, default={}, help=axes)
  saved = 'also compile without remat and zero1: what they save'
  parser.add_argument('--saved', action='store_true', help=saved)
  quick = 'with least effort: a fraction of the time'
  parser.add_argument('--quick', action='store_true', help=quick)
  parser.add_argument('--json', action='store_true', help=JSON)


def _compile(args):
  from sm3det_jax import config

  c = config.load(args.overrides)
  from sm3det_jax.analysis import compile_step

  if unknown := set(args.mesh) - set(c.mesh):
    raise UserError(f'--mesh: expected sizes of {", ".join(c.mesh)}, not of {min(unknown)}')
  c.mesh.update(args.mesh)
  report = compile_step.compile_step(c, args.topology, args.quick)
  if args.saved:
    report['hbm_gib']['saved'] = compile_step.memory_saved(report, c, args.topology, args.quick)
  print(json.dumps(report) if args.json else compile_step.table(report))


def _bench(args):
  from sm3det_jax import bench

  result = bench.run(args)
  if args.json:
    print(json.dumps(result))
  else:
    width = max(map(len, result))
    print('\n'.join(f'{name:{width}} {value:12,.2f}' for name, value in result.items()))


def of(module):
  """`add_arguments` of a module, loaded when it is called."""
  return lambda parser: importlib.import_module(module).add_arguments(parser)


def room(module, help, **options):
  """The verb of a module that has `add_arguments` and `run`."""
  return Verb(lambda args: importlib.import_module(module).run(args), help, of(module), **options)


VERBS = {
  'quickstart': Verb(
    _quickstart, 'train a small SM3Det on drawn scenes and evaluate it',
    _quickstart_arguments, workdir='optional', takes_config=True,
  ),
  'prepare': Verb(
    _prepare, 'turn a data set into what training reads',
    of('data_pipelines.prepare_command'), workdir='none',
  ),
  'dataset': Verb(
    _dataset, 'convert, split or tile a data set in its format',
    of('data_pipelines.dataset_command'), workdir='none',
  ),
  'scenes': room(
    'data_pipelines.scenes.large', 'draw large scenes, placed on the Earth, with their labels',
    workdir='none',
  ),
  'doctor': Verb(
    _doctor, 'what is in a data set, raw or prepared, and what is wrong with it: a report page',
    of('sm3det_jax.analysis.doctor.command'), workdir='none', takes_config=True,
  ),
  'train': Verb(
    _train, 'train, or go on with a run; --config.a.b=c changes a value', takes_config=True
  ),
  'pretrain': Verb(
    _pretrain, 'pre-train on masked images of several sensors, or of drawn scenes without data',
    takes_config=True,
  ),
  'evaluate': Verb(
    _evaluate, 'score a run on all its tasks', _evaluate_arguments, takes_config=True
  ),
  'predict': room('sm3det_jax.prediction.command', 'detect objects in images'),
  'routing': Verb(
    _routing, 'which experts each modality uses, as JSON and a figure',
    _routing_arguments, takes_config=True,
  ),
  'account': Verb(
    _account, 'parameters and multiply-accumulates, by part',
    _account_arguments, workdir='none', takes_config=True,
  ),
  'prune': room(
    'sm3det_jax.pruning.command', 'cut a pre-trained RingMoE to the modalities that are needed',
    takes_config=True,
  ),
  'weights': Verb(
    _weights, 'the weights that others publish: config, file, source, the paper’s numbers',
    workdir='none',
  ),
  'convert': room(
    'sm3det_jax.interop.command', 'official weights -> a workdir, or a workdir -> a state dict',
    workdir='optional', takes_config=True,
  ),
  'export': room(
    'sm3det_jax.interop.export.command',
    'a trained model for where this project is not: StableHLO, ONNX, safetensors',
  ),
  'compile': Verb(
    _compile, 'compile training for a TPU slice, on any machine',
    _compile_arguments, workdir='none', takes_config=True,
  ),
  'bench': Verb(
    _bench, 'measure a speed, or whether a model learns',
    of('sm3det_jax.bench'), workdir='none', takes_config=True,
  ),
}  # fmt: skip
