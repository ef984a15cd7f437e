"""`sm3det <verb>`: a verb parses its arguments and calls the room that does the work."""

import argparse
import json
import logging
import sys

from data_pipelines.errors import UserError
from sm3det_jax import bench

WORKDIR = 'folder of the run: config, checkpoints, logs and results'


def main(argv: list[str] | None = None) -> int:
  """Runs a verb; errors a user can mend are one line on standard error and exit status 2."""
  parser, argv = _parser(), sys.argv[1:] if argv is None else list(argv)
  args, rest = parser.parse_known_args(argv)
  strangers = [a for a in rest if not (args.takes_config and a.startswith('--config'))]
  if strangers:
    parser.error(f'unknown arguments: {" ".join(strangers)}')
  args.overrides = rest
  logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stderr)
  for library in ('absl', 'jax'):  # their remarks on backends and folders help no user
    logging.getLogger(library).setLevel(logging.ERROR)
  try:
    return args.run(args) or 0
  except (ValueError, FileNotFoundError, FloatingPointError, NotADirectoryError) as error:
    print(f'sm3det {args.verb}: {error}', file=sys.stderr)
    return 2


def _parser():
  parser = argparse.ArgumentParser('sm3det', description='SM3Det: one detector, any sensor.')
  verbs = parser.add_subparsers(dest='verb', required=True, metavar='VERB')

  def verb(name, run, help, takes_config=False, workdir=True):
    p = verbs.add_parser(name, help=help, description=help)
    p.set_defaults(run=run, takes_config=takes_config)
    if workdir:
      p.add_argument('--workdir', required=name not in ('quickstart', 'convert'), help=WORKDIR)
    return p

  p = verb('quickstart', _quickstart, 'train a small SM3Det on drawn scenes and evaluate it', True)
  p.set_defaults(workdir='sm3det_quickstart')
  p.add_argument('--steps', type=int, help='training steps, instead of the config’s')

  p = verb('prepare', _prepare, 'turn a data set into what training reads', workdir=False)
  _prepare_arguments(p)

  p = verb(
    'train', _train, 'train, or go on with a run; --config.a.b=c changes single values', True
  )

  p = verb('evaluate', _evaluate, 'score a run on all its tasks', True)
  p.add_argument('--split', help='of every task, instead of its test split')
  p.add_argument('--out', help='folder of the results; by default the workdir')
  p.add_argument('--json', action='store_true', help='one line of JSON, the last of the output')

  p = verb('predict', _predict, 'detect objects in images')
  p.add_argument('--task', required=True, help='task whose head looks at them, e.g. sar')
  p.add_argument('--out', required=True, help='folder of the pictures and JSON files')
  p.add_argument('--score_threshold', type=float, default=0.3)
  p.add_argument('images', nargs='+', metavar='IMAGE', help='image files or folders of them')

  p = verb('routing', _routing, 'which experts each modality uses, as JSON and a figure', True)
  p.add_argument('--split', help='of every task, instead of its test split')
  p.add_argument('--out', help='folder of the results; by default WORKDIR/routing')

  p = verb('account', _account, 'parameters and multiply-accumulates, by part', True, workdir=False)
  p.add_argument('--size', help='HxW of the image; by default each task’s own')
  p.add_argument('--json', action='store_true', help='one line of JSON, the last of the output')

  p = verb('convert', _convert, 'official weights -> a workdir, or a workdir -> a state dict', True)
  way = p.add_mutually_exclusive_group(required=True)
  way.add_argument('--from', dest='source', choices=['official'], help='makes --out of FILE')
  way.add_argument('--to', choices=['official'], help='makes FILE of --workdir')
  p.add_argument('--config', help='of the model, with --from')
  p.add_argument('--out', help='the new workdir, with --from')
  p.add_argument('file', metavar='FILE', help='weights: .pth, .safetensors or .npz')

  p = verb(
    'compile', _compile, 'compile training for a TPU slice, on any machine', True, workdir=False
  )
  p.add_argument('--topology', required=True, help='kind and shape, such as v5e:16x16 or v5p:8x8x8')
  p.add_argument('--mesh', default='', help='such as data:64,expert:4; by default config.mesh')
  p.add_argument(
    '--saved', action='store_true', help='also compile without remat and zero1: what they save'
  )
  p.add_argument(
    '--quick', action='store_true', help='with the least effort: a fraction of the time'
  )
  p.add_argument('--json', action='store_true', help='one line of JSON, the last of the output')

  p = verb('bench', _bench, 'measure a speed, or whether a model learns', True, workdir=False)
  found = bench.names()
  what = '; '.join(f'{name}: {text}' for name, text in found.items()).replace('%', '%%')
  p.add_argument('name', choices=found, help=what)
  p.add_argument('--steps', type=int, help='to time, or to train for')
  p.add_argument('--json', action='store_true', help='one line of JSON, the last of the output')
  return parser


def _prepare_arguments(parser):
  from data_pipelines import prepare_command

  prepare_command.add_arguments(parser)


def _quickstart(args):
  from sm3det_jax import config, quickstart

  c = config.load(['--config=quickstart', *args.overrides])
  if args.steps is not None:
    c = quickstart.shortened(c, args.steps)
  print(quickstart.run(c, args.workdir))


def _prepare(args):
  from data_pipelines import prepare_command

  for report in prepare_command.run(args):
    print(report.table())


def _train(args):
  from sm3det_jax import config, sharding, train
  from sm3det_jax.analysis import coverage

  c = config.load(args.overrides)
  sharding.start_processes()
  coverage.report(c)
  train.train(c, args.workdir)


def _evaluate(args):
  import rich

  from sm3det_jax import checkpoint, config, evaluate, sharding
  from sm3det_jax.metrics import table

  sharding.start_processes()
  c = config.override(checkpoint.load_config(args.workdir), args.overrides)
  mesh = sharding.evaluation_mesh(c.mesh)
  _, variables = checkpoint.restore_for_inference(args.workdir, mesh)
  out = args.out or args.workdir
  metrics = evaluate.evaluate(
    c, variables, mesh=mesh, split=args.split, out_dir=out, progress=not args.json
  )
  rich.print(table.render(metrics), file=sys.stderr if args.json else sys.stdout)
  if args.json:
    print(json.dumps(metrics))


def _predict(args):
  from sm3det_jax import predict

  errors = predict.predict(
    args.workdir, args.task, args.images, args.out, score_threshold=args.score_threshold
  )
  return 1 if errors else 0


def _routing(args):
  from sm3det_jax import checkpoint, config
  from sm3det_jax.analysis import routing

  c, variables = checkpoint.restore_for_inference(args.workdir)
  c = config.override(c, args.overrides)
  out = args.out or f'{args.workdir}/routing'
  print(routing.write(routing.measure(c, variables, args.split), out))


def _account(args):
  from sm3det_jax import config
  from sm3det_jax.analysis import account

  size = None
  if args.size:
    height, _, width = args.size.partition('x')
    if not (height.isdigit() and width.isdigit()):
      raise UserError(f'--size={args.size}: expected HxW, such as 800x800')
    size = int(height), int(width)
  counts = account.account(config.load(args.overrides), size)
  print(json.dumps(counts) if args.json else account.table(counts))


def _convert(args):
  from sm3det_jax import config
  from sm3det_jax.interop import convert

  needed = ('config', 'out') if args.source else ('workdir',)
  if missing := [f'--{name}' for name in needed if getattr(args, name) is None]:
    raise UserError(f'{" and ".join(missing)} missing')
  if args.to:
    print(f'{convert.to_file(args.workdir, args.file)} arrays in {args.file}')
    return
  c = config.load([f'--config={args.config}', *args.overrides])
  report = convert.to_workdir(c, args.file, args.out)
  print(report.table('copied', 'fresh', 'dropped'))
  print(f'{report.summary()}; all of them in {args.out}/conversion.txt')


def _compile(args):
  from sm3det_jax import config
  from sm3det_jax.analysis import compile_step

  c = config.load(args.overrides)
  for axis in filter(None, args.mesh.split(',')):
    name, _, size = axis.partition(':')
    if name not in c.mesh or not size.isdigit():
      raise UserError(f'--mesh={args.mesh}: expected sizes of {", ".join(c.mesh)}, as data:64')
    c.mesh[name] = int(size)
  report = compile_step.compile_step(c, args.topology, args.quick)
  if args.saved:
    report['hbm_gib']['saved'] = compile_step.memory_saved(report, c, args.topology, args.quick)
  print(json.dumps(report) if args.json else compile_step.table(report))


def _bench(args):
  from sm3det_jax import config

  measure = bench.load(args.name)
  c = config.load(args.overrides)
  result = measure(c) if args.steps is None else measure(c, args.steps)
  if args.json:
    print(json.dumps(result))
  else:
    print('\n'.join(f'{name:18} {value:12,.2f}' for name, value in result.items()))


if __name__ == '__main__':
  sys.exit(main())
