"""`sm3det weights` and `sm3det convert`."""

import argparse

from data_pipelines.errors import UserError
from sm3det_jax import config
from sm3det_jax.interop import known_weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `sm3det convert`, for `run`."""
  way = parser.add_mutually_exclusive_group(required=True)
  way.add_argument('--from', dest='source', choices=['official'], help='makes --out of FILE')
  way.add_argument('--to', choices=['official'], help='makes FILE of --workdir')
  known = 'of the model, with --from; by default that of the known weights that FILE has'
  parser.add_argument('--config', help=known)
  parser.add_argument('--out', help='the new workdir, with --from')
  parser.add_argument('file', metavar='FILE', help='weights: .pth, .safetensors or .npz')


def run(args: argparse.Namespace) -> None:
  """Does what `sm3det convert` was asked for, and prints it.

  Raises:
    as `convert.to_workdir` and `convert.to_file`, and UserError: an argument is missing; no config
      is given and the file is none that is known.
  """
  needed = 'out' if args.source else 'workdir'
  if getattr(args, needed) is None:
    raise UserError(f'--{needed} missing')
  given = args.config and config.load([f'--config={args.config}', *args.overrides])
  from sm3det_jax.interop import convert  # lazily: it loads JAX

  if args.to:
    print(f'{convert.to_file(args.workdir, args.file)} arrays in {args.file}')
    return
  sha256 = known_weights.digest(args.file)
  print(f'SHA-256 {sha256}: {known_weights.compared(args.file, sha256)}')
  name, paper = args.config, ''
  if name is None:
    found = convert.recognise(args.file)
    print(found.words())
    name = found.known[0].config
    paper = '; '.join(f'{k.name}: {known_weights.numbers(k)}' for k in found.known if k.paper)
  c = given or config.load([f'--config={name}', *args.overrides])
  report = convert.to_workdir(c, args.file, args.out)
  print(report.table('copied', 'fresh', 'dropped'))
  print(f'{report.summary()}; all of them in {args.out}/conversion.txt')
  if paper:
    print(f"the paper's mAP / AP50 / AP75: {paper}")
  if report.is_detector:
    print(f'sm3det evaluate --workdir={args.out} --config.data_root=data')
  else:  # its heads have learned nothing
    print(f'sm3det train --config={name} --config.init_from={args.out} --workdir=runs/NAME')
