"""`sm3det <verb>`: a verb parses its arguments and calls the room that does the work.

It imports that room after it has read the config: a slip of the keys is told at once.
"""

import argparse
import io
import json
import logging
import pathlib
import re
import signal
import sys

from data_pipelines import dataset_command, errors, prepare_command
from data_pipelines.errors import UserError
from data_pipelines.scenes import large
from sm3det_jax import __version__, bench, compilation_cache, config
from sm3det_jax.analysis.doctor import command as doctor_command
from sm3det_jax.config import command_line
from sm3det_jax.interop import command as weights_command
from sm3det_jax.interop import known_weights
from sm3det_jax.interop.export import command as export_command
from sm3det_jax.prediction import command as prediction_command
from sm3det_jax.pruning import command as pruning_command

WORKDIR = 'folder of the run: config, checkpoints, logs and results'


def main(argv: list[str] | None = None) -> int:
  """Runs a verb; errors a user can mend are one line on standard error and exit status 2."""
  if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the screen lacks stops no report
    sys.stdout.reconfigure(errors='backslashreplace')
  parser, argv = _parser(), _joined(sys.argv[1:] if argv is None else argv)
  args, rest = parser.parse_known_args(argv)
  strangers = [a for a in rest if not (args.takes_config and re.match(r'--(no)?config([.=]|$)', a))]
  if strangers:
    parser.error(f'{args.verb}: unknown arguments: {" ".join(strangers)}')
  args.overrides = rest
  logging.basicConfig(level=logging.INFO, format='%(message)s', handlers=[_Screen()])
  for library in ('absl', 'jax'):  # their remarks on backends and folders help no user
    logging.getLogger(library).setLevel(logging.ERROR)
  # these load no JAX; `doctor --config` does so itself
  if args.verb not in ('prepare', 'dataset', 'doctor', 'scenes', 'weights'):
    compilation_cache.enable()
  try:
    return args.run(args) or 0
  except KeyboardInterrupt as error:
    print(f'sm3det {args.verb}: {str(error) or "interrupted"}', file=sys.stderr)
    return 128 + signal.SIGINT
  except Exception as error:
    line = errors.line(error)
    if line is None:
      raise
    print(f'sm3det {args.verb}: {line}', file=sys.stderr)
    return 2


class _Screen(logging.StreamHandler):
  """Standard error, whatever that is at the moment: above the bar, while one is shown."""

  stream = property(lambda self: sys.stderr, lambda self, _: None)


class _Parser(argparse.ArgumentParser):
  """No abbreviations, which would come to mean another thing with a new option; short errors."""

  def __init__(self, *args, **options):
    super().__init__(*args, allow_abbrev=False, **options)

  def error(self, message):
    self.exit(2, f'{self.prog}: {message} (see {self.prog} --help)\n')


def _joined(argv):
  """`--config X` and `--config.a X` as `--config=X` and `--config.a=X`."""
  joined = []
  for a in argv:
    if joined and re.fullmatch(r'--config(\.[\w.]+)?', joined[-1]) and not a.startswith('--'):
      joined[-1] += f'={a}'
    else:
      joined.append(str(a))
  return joined


def _parser():
  parser = _Parser('sm3det', description='SM3Det: one detector, any sensor.')
  parser.add_argument('--version', action='version', version=f'sm3det {__version__}')
  verbs = parser.add_subparsers(dest='verb', required=True, metavar='VERB')

  def verb(name, run, help, takes_config=False, workdir=True):
    p = verbs.add_parser(name, help=help, description=help)
    p.set_defaults(run=run, takes_config=takes_config)
    if workdir:
      p.add_argument('--workdir', required=name not in ('quickstart', 'convert'), help=WORKDIR)
    return p

  p = verb('quickstart', _quickstart, 'train a small SM3Det on drawn scenes and evaluate it', True)
  p.set_defaults(workdir='sm3det_quickstart')
  p.add_argument('--steps', type=command_line.count, help='training steps, instead of the config’s')

  run = lambda args: print(prepare_command.show(args))
  p = verb('prepare', run, 'turn a data set into what training reads', workdir=False)
  prepare_command.add_arguments(p)

  run = lambda args: print(dataset_command.run(args).table())
  p = verb('dataset', run, 'convert, split or tile a data set in its format', workdir=False)
  dataset_command.add_arguments(p)

  what = 'draw large scenes, placed on the Earth, with their labels'
  large.add_arguments(verb('scenes', large.run, what, workdir=False))

  what = 'what is in a data set, raw or prepared, and what is wrong with it: a report page'
  doctor_command.add_arguments(verb('doctor', _doctor, what, True, workdir=False))

  verb('train', _train, 'train, or go on with a run; --config.a.b=c changes a value', True)

  p = verb('evaluate', _evaluate, 'score a run on all its tasks', True)
  command_line.add_tta(p)
  p.add_argument('--split', help='of every task, instead of its test split')
  p.add_argument('--out', help='folder of the results; by default the workdir')
  p.add_argument('--json', action='store_true', help='one line of JSON, the last of the output')

  run = prediction_command.run
  prediction_command.add_arguments(verb('predict', run, 'detect objects in images'))

  p = verb('routing', _routing, 'which experts each modality uses, as JSON and a figure', True)
  p.add_argument('--split', help='of every task, instead of its test split')
  p.add_argument('--out', help='folder of the results; by default WORKDIR/routing')

  p = verb('account', _account, 'parameters and multiply-accumulates, by part', True, workdir=False)
  p.add_argument(
    '--size', type=command_line.size, help='HxW of the image; by default each task’s own'
  )
  p.add_argument('--json', action='store_true', help='one line of JSON, the last of the output')

  pruning_command.add_arguments(verb('prune', pruning_command.run, pruning_command.HELP, True))

  what = 'the weights that others publish: config, file, source, the paper’s numbers'
  verb('weights', lambda args: print(known_weights.table()), what, workdir=False)

  what = 'official weights -> a workdir, or a workdir -> a state dict'
  weights_command.add_arguments(verb('convert', weights_command.run, what, True))

  export_command.add_arguments(verb('export', export_command.run, export_command.HELP))

  what = 'compile training for a TPU slice, on any machine'
  p = verb('compile', _compile, what, True, workdir=False)
  p.add_argument('--topology', required=True, help='kind and shape, such as v5e:16x16 or v5p:8x8x8')
  axes = 'such as data:64,expert:4; by default config.mesh'
  p.add_argument('--mesh', type=command_line.mesh, default={}, help=axes)
  saved = 'also compile without remat and zero1: what they save'
  p.add_argument('--saved', action='store_true', help=saved)
  p.add_argument('--quick', action='store_true', help='with least effort: a fraction of the time')
  p.add_argument('--json', action='store_true', help='one line of JSON, the last of the output')

  p = verb('bench', _bench, 'measure a speed, or whether a model learns', True, workdir=False)
  bench.add_arguments(p)
  return parser


def _folder(path):
  """The folder, made now: one that cannot be is told before the work, not after it."""
  pathlib.Path(path).mkdir(parents=True, exist_ok=True)
  return path


def _quickstart(args):
  c = config.load(['--config=quickstart', *args.overrides])
  from sm3det_jax import quickstart
  from sm3det_jax.config.small import shortened

  counts = quickstart.scene_counts(c)
  if args.steps is not None:
    c = shortened(c, args.steps)
  print(quickstart.run(c, _folder(args.workdir), counts))


def _doctor(args):
  c = config.load(args.overrides) if args.overrides else None
  report = doctor_command.run(args, c)
  print(report.table())
  return int(args.strict and report.wrong)


def _train(args):
  c = config.load(args.overrides)
  from data_pipelines import mixture
  from sm3det_jax import sharding, train
  from sm3det_jax.analysis import coverage

  sharding.start_processes()
  tasks = mixture.open_tasks(c)
  mixture.warn_of_missing_tests(c)
  coverage.report(tasks)
  train.train(c, args.workdir, tasks=tasks)


def _evaluate(args):
  import rich

  from sm3det_jax import checkpoint, evaluate, sharding
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


def _routing(args):
  from sm3det_jax import checkpoint
  from sm3det_jax.analysis import routing

  c = config.override(checkpoint.load_config(args.workdir), args.overrides)
  out = _folder(args.out or f'{args.workdir}/routing')
  _, variables = checkpoint.restore_for_inference(args.workdir)
  print(routing.write(routing.measure(c, variables, args.split), out))


def _account(args):
  c = config.load(args.overrides)
  from sm3det_jax.analysis import account

  counts = account.account(c, args.size)
  print(json.dumps(counts) if args.json else account.table(counts))


def _compile(args):
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
  result = bench.run(args)
  if args.json:
    print(json.dumps(result))
  else:
    width = max(map(len, result))
    print('\n'.join(f'{name:{width}} {value:12,.2f}' for name, value in result.items()))


if __name__ == '__main__':
  sys.exit(main())
