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

from data_pipelines import prepare, quarantine, soi_det
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
  pairs = [pair.partition('=') for pair in filter(None, text.split(','))]
  if wrong := [spelling for spelling, *rest in pairs if not (spelling and all(rest))]:
    raise UserError(f'--aliases={text}: expected spelling=class,..., not {wrong[0]!r}')
  return {spelling: name for spelling, _, name in pairs}


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
  add_source_arguments(parser, 'auto (looks, writes nothing)', 'soi_det')
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
    as `read_subset`, `parse_splits`, `parse_aliases` and `quarantine.read`.
  """
  return dict(
    dataset=args.dataset.split(','),
    source=args.source.split(','),
    name=args.name,
    classes=tuple(filter(None, args.classes.split(','))),
    splits=[parse_splits(s) for s in args.splits],
    box=args.box,
    ignore=tuple(filter(None, args.ignore.split(','))),
    aliases=parse_aliases(args.aliases),
    subset=read_subset(args.subset, skipped) if args.subset else None,
    quarantine=quarantine.read(args.quarantine) if args.quarantine else None,
    how=Decisions(**{name: getattr(args, name) for name in decisions.CHOICES}),
    skipped=skipped,
  )


def show(args: argparse.Namespace) -> str:
  """Does what `sm3det prepare` was asked for, and says what came of it; raises as `run`."""
  if args.dataset == 'auto':
    return auto.look(pathlib.Path(args.source), args.data_root)
  return '\n'.join(report.table() for report in run(args))


def run(args: argparse.Namespace) -> list[Report]:
  """Prepares what `sm3det prepare` was asked for.

  Raises:
    as `prepare`.
  """
  arguments = source_arguments(args, new_skipped(args))
  if arguments['dataset'] != ['soi_det']:
    return [prepare.prepare(data_dir=args.data_root, **arguments)]
  if args.quarantine:
    raise UserError(
      '--quarantine: soi_det is three data sets; put the list of each to '
      f'{args.data_root}/soi_det_sar/{quarantine.NAME} (or _rgb, _ifr), where it is honoured'
    )
  new = functools.partial(new_skipped, args)
  return soi_det.prepare(arguments['source'], args.data_root, arguments['subset'], new)


def new_skipped(args: argparse.Namespace) -> Skipped:
  """What counts the things left out, by the user's wishes."""
  return Skipped(args.strict, args.encoding, args.follow_links)
