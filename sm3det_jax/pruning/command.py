"""`sm3det prune`: a pre-trained run -> a workdir of the part of it that some modalities need."""

import argparse
import itertools
import pathlib

from data_pipelines.errors import UserError
from sm3det_jax import config as config_lib
from sm3det_jax.config import command_line
from sm3det_jax.pruning import models
from sm3det_jax.pruning.layers import RANK


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `run`."""
  parser.add_argument('--keep', required=True, metavar='NAMES', help='modalities, as opt+sar_l2')
  parser.add_argument('--out', required=True, help='the new workdir')
  way = parser.add_mutually_exclusive_group()
  ep = 'keep the collaborative experts used most, PERCENT of them in each layer, by data'
  way.add_argument('--ep', type=_percent, metavar='PERCENT', help=ep)
  for how, what in (
    ('ks', 'the sum of the experts'),
    ('ka', 'their mean'),
    ('kc', 'the sum of their low-rank approximations'),
  ):
    help = f'one dense FFN a block: {what}'
    way.add_argument(f'--{how}', dest='how', action='store_const', const=how, help=help)
  rank = 'of the approximations of --kc: a side of the matrix over the number of experts'
  parser.add_argument('--rank', choices=RANK, help=f'{rank}; by default min_dim')
  parser.add_argument(
    '--split', help='that --ep counts on; by default each modality’s training one'
  )
  images = 'of each modality that --ep counts on, at most; by default %(default)s'
  parser.add_argument('--images', type=command_line.count, default=512, metavar='N', help=images)


def _percent(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = 0.0
  if not 0 < value <= 100:
    raise argparse.ArgumentTypeError(f'{text!r}: expected a percentage above 0, at most 100')
  return value


def run(args: argparse.Namespace) -> None:
  """Does what `sm3det prune` was asked for, and prints it.

  Raises:
    UserError: `--out` holds a run; a modality that the run lacks; a model without experts to prune;
      an option without the one that it belongs to.
  """
  if args.rank and args.how != 'kc':
    raise UserError('--rank is of --kc alone')
  if args.split and args.ep is None:
    raise UserError('--split is of --ep alone')
  if (pathlib.Path(args.out) / 'config.json').exists():  # told before the work
    raise UserError(f'{args.out} holds a run already; give a folder of its own')
  from sm3det_jax import checkpoint  # lazily: they load JAX
  from sm3det_jax.pruning import counting

  config = config_lib.override(checkpoint.load_config(args.workdir), args.overrides)
  models.moe_blocks(config)  # for its errors
  _, whole = checkpoint.restore_for_inference(args.workdir)
  config, variables = models.submodel(config, whole, args.keep.split('+'))
  before = _size(whole)
  del whole
  if args.ep is not None:
    keep = counting.chosen(config, variables, args.ep, args.split, args.images)
    config, variables = models.pruned(config, variables, keep)
    print('\n'.join(f'{block}: keeps {_numbers(k)} of {len(k)}' for block, k in keep.items()))
  elif args.how:
    config, variables = models.dense(config, variables, args.how, args.rank or 'min_dim')
  checkpoint.save_weights(args.out, config, variables)
  print(f'{before:,} parameters of {args.workdir} -> {_size(variables):,} of {args.out}')
  print(f'sm3det account --config={args.out}/config.json')


def _size(variables):
  import jax

  return sum(a.size for a in jax.tree.leaves(variables['params']))


def _numbers(keep):
  return ', '.join(map(str, itertools.compress(range(len(keep)), keep)))
