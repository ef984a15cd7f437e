"""`sm3det prepare`: data sets in their own formats -> prepared data sets that training reads.

    sm3det prepare --dataset=sardet100k --source=DIR --data_root=data
    sm3det prepare --dataset=coco,voc --source=DIR1,DIR2 --data_root=data --name=ships \\
      --classes=ship --splits=train=train.json:images --splits=train=Annotations:JPEGImages
"""

import argparse
import difflib
import functools
import logging
import pathlib
import re

from data_pipelines import prepare, quarantine, soi_det, tiles
from data_pipelines.batch import KINDS
from data_pipelines.builders import auto, decisions, presets
from data_pipelines.builders.decisions import Decisions
from data_pipelines.errors import UserError
from data_pipelines.prepare import Report
from data_pipelines.readers import Skipped, texts

logger = logging.getLogger(__name__)

USUAL = ('train', 'val', 'test', 'trainval')  # names of splits
DECISIONS = {
  'angle': 'unit of angles; by default told by the largest of all splits',
  'turn': 'the way that angles grow, on the screen; by default clockwise',
  'coordinates': "whether they are shares of width and height; by default the format's own",
  'sizes': "'ignore' takes images of another size than their labels declare",
  'exif': "which view of images with an EXIF orientation the labels are of; 'auto' asks the size",
}


def parse_splits(text: str) -> dict[str, str]:
  """'train=LABELS:IMAGES,test=...' -> {split: 'LABELS:IMAGES'}.

  Raises:
    UserError: not of that form.
  """
  splits = {}
  for part in text.split(','):
    split, equals, place = part.partition('=')
    if not (re.fullmatch('[a-z][a-z0-9]*', split) and equals and place):
      raise UserError(f'--splits={text}: expected split=LABELS:IMAGES,..., not {part!r}')
    if split == 'all':
      raise UserError(f'--splits={text}: "all" means all splits to what reads the data; rename it')
    if split in splits:
      raise UserError(f'--splits={text}: split {split!r} twice; name each source of its own')
    splits[split] = place
    near = difflib.get_close_matches(split, USUAL, 1)
    if near and split not in USUAL:
      logger.warning('--splits: a split called %r; did you mean %r?', split, near[0])
  return splits


def parse_aliases(text: str) -> dict[str, str]:
  """'spelling=class,...' -> {spelling: class}.

  Raises:
    UserError: not of that form.
  """
  found = {}
  for pair in filter(None, text.split(',')):
    spelling, _, name = (part.strip() for part in pair.partition('='))
    if not (spelling and name):
      raise UserError(f'--aliases={text}: expected spelling=class,..., not {pair!r}')
    if found.setdefault(spelling, name) != name:
      raise UserError(f'--aliases={text}: {spelling!r} is given two classes')
  return found


def parse_names(text: str, option: str) -> tuple[str, ...]:
  """'ship, boat' -> ('ship', 'boat').

  Raises:
    UserError: a name twice.
  """
  names = tuple(filter(None, (name.strip() for name in text.split(','))))
  if len(set(names)) < len(names):
    raise UserError(f'--{option}={text}: a name twice')
  return names


def read_subset(path, skipped: Skipped | None = None) -> texts.Names:
  """The images that a COCO json lists, or a text with a name a line.

  Raises:
    FileNotFoundError: no such file.
    UserError: it is neither.
  """
  path, skipped = pathlib.Path(path), skipped or Skipped()
  try:
    if not texts.read(path, skipped).lstrip().startswith('{'):
      return texts.Names(path, texts.lines(path, skipped))
    images = texts.json_of(path, skipped)['images']
    return texts.Names(path, [i.get('file_name') or i['filename'] for i in images])
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f'--subset={path}: neither a COCO file nor a text with a name a line '
      f'({type(error).__name__}: {error})'
    ) from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `sm3det prepare`, for `run`."""
  add_source_arguments(parser, 'auto (looks, writes nothing)', 'soi_det', 'tiles (no labels)')
  tiles.add_arguments(parser)
  root = 'root of the prepared data sets, config.data_root of a training (once called --data_dir)'
  parser.add_argument('--data_root', '--data_dir', required=True, metavar='FOLDER', help=root)
  add_strict(parser)


def add_strict(parser: argparse.ArgumentParser) -> None:
  """Adds `--strict`."""
  strict = 'stop at the first entry that would be left out'
  parser.add_argument('--strict', action='store_true', help=strict)


def add_source_arguments(
  parser: argparse.ArgumentParser, *more: str, required: bool = True
) -> None:
  """Adds the arguments that say what a data set is and how it is read, for `source_arguments`.

  Args:
    parser: gets them.
    more: what `--dataset` may be beside a data set or format.
    required: whether data set and source have to be given.
  """
  known = ', '.join([*more, *presets.known()])
  add = parser.add_argument
  add('--dataset', required=required, help=f'data set or format, or several by commas: {known}')
  add('--source', required=required, help='its folder; one a data set, by commas')
  add('--name', help='name of the prepared data set; by default that of the data set')
  add('--classes', default='', help='class names in label order, by commas')
  places = 'where labels and images lie below the source; given once a source, in order'
  example = 'train=LABELS:IMAGES,test=LABELS:IMAGES'
  add('--splits', action='append', default=[], metavar=example, help=places)
  boxes = 'hbb takes the enclosing boxes of oriented labels, image none'
  add('--box', choices=KINDS, help=boxes)
  add('--ignore', default='', help='class names to leave out, by commas')
  add('--aliases', default='', help='spelling=class,... for names the class list spells otherwise')
  add('--subset', help='text file (a name a line) or COCO json: take only these images')
  add('--quarantine', metavar='FILE', help='list of images to leave out, as `doctor` writes it')
  for name, choices in decisions.CHOICES.items():
    add(f'--{name}', choices=choices, default=choices[0], help=DECISIONS[name])
  add('--encoding', default='utf-8-sig', help='of label files without a byte order mark: gbk, ..')
  links = 'follow symbolic links that lead out of the source'
  add('--follow_links', action='store_true', help=links)


def source_arguments(args: argparse.Namespace, skipped: Skipped) -> dict:
  """The arguments of `raw.collect` that `add_source_arguments` have been given.

  Args:
    args: parsed.
    skipped: counts what is left out.

  Raises:
    as `read_subset`, `parse_splits`, `parse_aliases` and `quarantine.read`; UserError: a word for
      `--dataset` that `sm3det prepare` alone knows.
  """
  dataset = args.dataset.split(',')
  if 'soi_det' in dataset:
    raise UserError(
      '--dataset=soi_det is three data sets, which only `sm3det prepare` takes, alone; name one of '
      'soi_det_sar, soi_det_rgb, soi_det_ifr'
    )
  if 'auto' in dataset:
    raise UserError('--dataset=auto: only `sm3det prepare` looks, at one source; name a format')
  if 'tiles' in dataset:
    raise UserError('--dataset=tiles: only `sm3det prepare` takes it, alone; name a format')
  return dict(
    dataset=dataset,
    source=args.source.split(','),
    name=args.name,
    classes=parse_names(args.classes, 'classes'),
    splits=[parse_splits(s) for s in args.splits],
    box=args.box,
    ignore=parse_names(args.ignore, 'ignore'),
    aliases=parse_aliases(args.aliases),
    subset=read_subset(args.subset, skipped) if args.subset else None,
    quarantine=quarantine.read(args.quarantine) if args.quarantine else None,
    how=Decisions(**{name: getattr(args, name) for name in decisions.CHOICES}),
    skipped=skipped,
  )


def check_unused(args: argparse.Namespace, what: str, *used: str) -> None:
  """Refuses the options of `add_source_arguments` that would be ignored in silence.

  Args:
    args: parsed.
    what: that is asked for, for the message.
    used: options that it honours.

  Raises:
    UserError: another one is given.
  """
  parser = argparse.ArgumentParser()
  add_source_arguments(parser, required=False)
  for name, usual in vars(parser.parse_args([])).items():
    if name not in used and getattr(args, name) != usual:
      raise UserError(f'--{name}: {what} does not take it; leave it away')


def show(args: argparse.Namespace) -> str:
  """Does what `sm3det prepare` was asked for, and says what came of it; raises as `run`."""
  if args.dataset == 'auto':
    check_unused(args, '--dataset=auto', 'dataset', 'source', 'encoding', 'follow_links')
    if args.strict:
      raise UserError('--strict: --dataset=auto does not take it; leave it away')
    return auto.look(pathlib.Path(args.source), args.data_root, new_skipped(args))
  return '\n'.join(report.table() for report in run(args))


def run(args: argparse.Namespace) -> list[Report]:
  """Prepares what `sm3det prepare` was asked for.

  Raises:
    as `prepare`.
  """
  new = functools.partial(new_skipped, args)
  if args.dataset == 'tiles':
    return [_tiles(args, new())]
  tiles.check_unused(args)
  if args.dataset != 'soi_det':
    return [prepare.prepare(data_dir=args.data_root, **source_arguments(args, new()))]
  if args.quarantine:
    raise UserError(
      '--quarantine: soi_det is three data sets; put the list of each to '
      f'{args.data_root}/soi_det_sar/{quarantine.NAME} (or _rgb, _ifr), where it is honoured'
    )
  honoured = ('dataset', 'source', 'subset', 'encoding', 'follow_links')
  check_unused(args, "soi_det, the paper's data as it is,", *honoured)
  subset = read_subset(args.subset, new()) if args.subset else None
  return soi_det.prepare(args.source.split(','), args.data_root, subset, new)


def _tiles(args, skipped):
  check_unused(args, '--dataset=tiles', 'dataset', 'source', 'name', 'splits', 'follow_links')
  if len(args.splits) > 1:
    raise UserError('--splits is given twice, but --dataset=tiles has one source')
  return tiles.prepare(
    args.modality,
    args.source,
    args.data_root,
    name=args.name,
    splits=parse_splits(args.splits[0]) if args.splits else None,
    cut=tiles.cut_of(args),
    skipped=skipped,
  )


def new_skipped(args: argparse.Namespace) -> Skipped:
  """What counts the things left out, by the user's wishes."""
  return Skipped(args.strict, args.encoding, args.follow_links)
