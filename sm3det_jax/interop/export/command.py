"""`sm3det export`: a model for where the code of this project is not.

sm3det export --workdir=runs/t --task=rgb --format=stablehlo --out=rgb.stablehlo
sm3det export --workdir=runs/t --task=rgb --format=onnx --out=rgb.onnx
sm3det export --workdir=runs/t --format=safetensors --out=t.safetensors
"""

import argparse
import pathlib

from data_pipelines.atomic import probe
from data_pipelines.errors import UserError

FORMATS = {  # and what else than --task each takes
  'stablehlo': ('batch', 'platforms'),
  'onnx': ('batch', 'cut'),
  'safetensors': (),
}
OPTIONS = ('batch', 'platforms', 'cut')


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `sm3det export`, for `run`."""
  parser.add_argument('--task', help='whose head is exported; safetensors has those of all tasks')
  what = 'a program that jax or ONNX Runtime runs, or the parameters by their names'
  parser.add_argument('--format', required=True, choices=FORMATS, help=what)
  parser.add_argument('--out', required=True, metavar='FILE', help='FILE.json says what it is')
  parser.add_argument('--batch', type=_batch, help='images at once (1); any: stablehlo alone')
  platforms = 'where a stablehlo program can run: cpu,cuda,tpu, or some of these and rocm'
  parser.add_argument('--platforms', help=platforms)
  cut = 'onnx: every decoded box and its score, without the last NMS'
  parser.add_argument('--cut', choices=['boxes'], help=cut)


def run(args: argparse.Namespace) -> None:
  """Does what `sm3det export` was asked for, and prints a line about it.

  Raises:
    FileNotFoundError: no run or no checkpoint in the workdir.
    UserError: an option that says nothing for the format; as `stablehlo.serialised`,
      `onnx.serialised` and `weights.read`.
  """
  given = {key: value for key in OPTIONS if (value := getattr(args, key)) is not None}
  if idle := [key for key in given if key not in FORMATS[args.format]]:
    raise UserError(f'--{idle[0]} says nothing for --format={args.format}')
  if args.format != 'safetensors' and args.task is None:
    raise UserError(f'--task missing: --format={args.format} is of one task')
  out = pathlib.Path(args.out)
  if out.is_dir():
    raise UserError(f'--out={out} is a folder; name a file')
  probe(out.parent)
  config, variables = _model(args.workdir)
  if args.task is not None and args.task not in config.tasks:
    raise UserError(f'unknown task {args.task!r}; {args.workdir} has {", ".join(config.tasks)}')
  if args.format != 'safetensors' and config.tasks[args.task].kind == 'image':
    raise UserError(f'task {args.task!r} is of images alone: it detects nothing')
  print(_write(args, given, out, config, variables))


def _write(args, given, out, config, variables):
  """Writes the file; what it is, in a line."""
  from data_pipelines.atomic import write_atomically
  from sm3det_jax.interop.export import about, weights

  if args.format == 'safetensors':
    data = weights.serialised(config, variables)
    write_atomically(out, data)
    return f'{out}: {len(data) / 1e6:.1f} MB, all parameters of {args.workdir} and its config'
  if args.format == 'onnx':
    from sm3det_jax.interop.export import onnx

    form = {'batch': 1, 'cut': None} | given
    data = onnx.serialised(config, variables, args.task, **form)
  else:
    from sm3det_jax.interop.export import stablehlo

    form = {'batch': 1, 'platforms': stablehlo.PLATFORMS} | given
    if args.platforms:
      form['platforms'] = args.platforms.split(',')
    data = stablehlo.serialised(config, variables, args.task, **form)
  about.write(out, data, config, args.task, format=args.format, **form)
  return f'{out}: {len(data) / 1e6:.1f} MB, task {args.task}; described in {about.place(out)}'


def _model(workdir):
  """(config, variables) of a run, or of a safetensors file that this verb wrote."""
  if pathlib.Path(workdir).is_file():
    from sm3det_jax.interop.export import weights

    return weights.read(workdir)
  from sm3det_jax import checkpoint

  return checkpoint.restore_for_inference(workdir)


def _batch(text):
  if text == 'any':
    return text
  if not (text.isdigit() and int(text)):
    raise argparse.ArgumentTypeError(f'{text!r}: expected a whole number from 1 on, or any')
  return int(text)
