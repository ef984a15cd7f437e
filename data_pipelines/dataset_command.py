"""`sm3det dataset`: a data set in its own format -> another format, other splits, patches.

sm3det dataset convert --dataset=dota --source=DOTA --to=coco_rotated --out=DOTA_coco
sm3det dataset split --dataset=dota_txt --source=DIR --out=NEW --fractions=train=0.8,val=0.2
sm3det dataset tile --dataset=dota --source=DOTA --out=PATCHES --size=800 --overlap=200
"""

import argparse
import re

from data_pipelines import prepare, prepare_command
from data_pipelines.angles import CONVENTIONS
from data_pipelines.builders import presets
from data_pipelines.dataset import convert, files, split, tile
from data_pipelines.errors import UserError
from data_pipelines.prepare import Collected
from data_pipelines.writers import formats


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the sub-verbs of `sm3det dataset`, for `run`."""
  verbs = parser.add_subparsers(dest='what', required=True, metavar='WHAT')

  def verb(name, run, what, **to):
    p = verbs.add_parser(name, help=what, description=what)
    p.set_defaults(work=run)
    _source(p)
    p.add_argument('--out', required=True, help='new or empty folder; nothing is overwritten')
    p.add_argument('--to', choices=formats.TARGETS, **to)
    conventions = 'of the angles written, where the format has any; by default le90'
    p.add_argument('--angle', choices=CONVENTIONS, help=conventions)
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
    as `prepare.collect`, and UserError.
  """
  return args.work(args)


def _source(parser):
  add = parser.add_argument
  known = ', '.join(presets.known())
  add('--dataset', required=True, help=f'data set or format, or several by commas: {known}')
  add('--source', required=True, help='its folder; one a data set, by commas')
  add('--classes', default='', help='class names in label order, by commas')
  example = 'train=LABELS:IMAGES,test=LABELS:IMAGES'
  places = 'where labels and images lie below the source; given once a source, in order'
  add('--splits', action='append', default=[], metavar=example, help=places)
  add('--box', choices=('hbb', 'obb'), help='hbb takes the enclosing boxes of oriented labels')
  add('--ignore', default='', help='class names to leave out, by commas')
  add('--aliases', default='', help='spelling=class,... for names the class list spells otherwise')
  add('--subset', help='text file (a name a line) or COCO json: take only these images')


def _collect(args) -> Collected:
  return prepare.collect(
    args.dataset.split(','),
    args.source.split(','),
    classes=tuple(filter(None, args.classes.split(','))),
    splits=[prepare_command.parse_splits(s) for s in args.splits],
    box=args.box,
    ignore=tuple(filter(None, args.ignore.split(','))),
    aliases=prepare_command.parse_aliases(args.aliases),
    subset=prepare_command.read_subset(args.subset).__contains__ if args.subset else None,
  )


def _convert(args):
  return convert.convert(_collect(args), args.to, args.out, images=args.images, angle=args.angle)


def _split(args):
  to = args.to or args.dataset
  if to not in formats.TARGETS:
    raise UserError(f'say in which format to write: --to={", ".join(formats.TARGETS)}')
  if args.scene and args.by == 'image':
    raise UserError('--scene has no meaning with --by=image')
  fractions = _numbers(args.fractions)
  scene = str if args.by == 'image' else split.scene_of(args.scene)
  of = tuple(filter(None, args.of.split(',')))
  c, record = split.divide(_collect(args), fractions, scene=scene, of=of, seed=args.seed)
  rule = dict(by=args.by, scene=args.scene, seed=args.seed, fractions=fractions)
  return convert.convert(
    c, to, args.out, images=args.images, angle=args.angle, notes=split.note(record, **rule)
  )


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
  return tile.tile(
    _collect(args),
    args.out,
    to=args.to,
    size=args.size,
    overlap=args.overlap,
    keep=args.keep,
    rates=rates,
    angle=args.angle,
  )
