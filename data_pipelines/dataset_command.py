"""`sm3det dataset`: a data set in its own format -> another format, other splits, patches.

sm3det dataset convert --dataset=dota --source=DOTA --to=coco_rotated --out=DOTA_coco
sm3det dataset split --dataset=dota_txt --source=DIR --out=NEW --fractions=train=0.8,val=0.2
sm3det dataset tile --dataset=dota --source=DOTA --out=PATCHES --size=800 --overlap=200
"""

import argparse
import re

from data_pipelines import prepare, prepare_command, raw
from data_pipelines.angles import CONVENTIONS
from data_pipelines.dataset import convert, files, split, tile
from data_pipelines.errors import UserError
from data_pipelines.writers import formats


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the sub-verbs of `sm3det dataset`, for `run`."""
  verbs = parser.add_subparsers(dest='what', required=True, metavar='WHAT')

  def verb(name, run, what, **to):
    p = verbs.add_parser(name, help=what, description=what)
    p.set_defaults(work=run)
    prepare_command.add_source_arguments(p)
    prepare_command.add_strict(p)
    p.add_argument('--out', required=True, help='new or empty folder; nothing is overwritten')
    p.add_argument('--to', choices=formats.TARGETS, **to)
    conventions = 'of the angles written, where the format has any; by default le90'
    p.add_argument('--convention', choices=CONVENTIONS, help=conventions)
    return p

  images = 'copy (default: the new set is whole by itself), hard link (the same files, which must '
  images += 'not be edited then), or none'
  p = verb('convert', _convert, 'write it in another format', required=True, help='format')
  p.add_argument('--images', choices=files.MODES, default='copy', help=images)

  p = verb('split', _split, 'divide it into splits', help='format; by default as it is')
  p.add_argument('--images', choices=files.MODES, default='copy', help=images)
  shares = 'train=0.8,val=0.2'
  p.add_argument('--fractions', required=True, metavar=shares, help='shares of the images')
  by = 'whether all patches of a scene stay together (default)'
  p.add_argument('--by', choices=('scene', 'image'), default='scene', help=by)
  p.add_argument('--scene', metavar='REGEX', help='finds the scene, its one group, in a name')
  p.add_argument('--of', default='', help='splits to divide, by commas; the others stay')
  p.add_argument('--seed', type=int, default=0)

  p = verb('tile', _tile, 'cut it into patches', default='dota_txt', help='by default dota_txt')
  p.add_argument('--size', type=int, default=800, help='px of a side')
  p.add_argument('--overlap', type=int, default=200, help='px of neighbours')
  keep = 'share of its area that an object has in a patch, or is left out there'
  p.add_argument('--keep', type=float, default=0.7, help=keep)
  p.add_argument('--rates', default='1.0', help='factors to resize by, by commas')


def run(args: argparse.Namespace) -> convert.Report:
  """Does what `sm3det dataset` was asked for.

  Raises:
    as `raw.collect`, and UserError.
  """
  return args.work(args)


def _convert(args):
  source = prepare_command.source_arguments(args, prepare_command.new_skipped(args))
  return convert.convert(_collected(args, source), args.to, args.out, **_writing(args, source))


def _split(args):
  to = args.to or args.dataset
  if to not in formats.TARGETS:
    raise UserError(f'say in which format to write: --to={", ".join(formats.TARGETS)}')
  if args.scene and args.by == 'image':
    raise UserError('--scene has no meaning with --by=image')
  fractions = _numbers(args.fractions)
  scene = str if args.by == 'image' else split.scene_of(args.scene)
  of = tuple(filter(None, args.of.split(',')))
  source = prepare_command.source_arguments(args, prepare_command.new_skipped(args))
  c, record = split.divide(_collected(args, source), fractions, scene=scene, of=of, seed=args.seed)
  rule = dict(by=args.by, scene=args.scene, seed=args.seed, fractions=fractions)
  notes = split.note(record, **rule)
  return convert.convert(c, to, args.out, notes=notes, **_writing(args, source))


def _collected(args, source):
  files.check_out(args.out, source['source'])
  c = raw.collect(**source)
  prepare.count_unmatched(c, source['ignore'], source['aliases'])
  return c


def _writing(args, source):
  return dict(images=args.images, convention=args.convention, how=source['how'])


def _numbers(text):
  found = {}
  for part in text.split(','):
    name, _, share = part.partition('=')
    try:
      if not re.fullmatch('[a-z][a-z0-9]*', name) or name in found:
        raise ValueError
      found[name] = float(share)
    except ValueError:
      raise UserError(f'--fractions={text}: expected train=0.8,val=0.2, not {part!r}') from None
  return found


def _tile(args):
  try:
    rates = [float(r) for r in args.rates.split(',')]
  except ValueError:
    raise UserError(f'--rates={args.rates}: expected numbers by commas') from None
  source = prepare_command.source_arguments(args, prepare_command.new_skipped(args))
  return tile.tile(
    _collected(args, source),
    args.out,
    to=args.to,
    size=args.size,
    overlap=args.overlap,
    keep=args.keep,
    rates=rates,
    convention=args.convention,
    how=source['how'],
  )
