"""`sm3det doctor`: what is in a data set, raw or prepared, and what is wrong with it.

sm3det doctor ships --data_root=data --out=look
sm3det doctor --dataset=coco --source=DIR --out=look --config=quickstart
"""

import argparse
import contextlib
import logging
from collections.abc import Iterator

from ml_collections import ConfigDict

from data_pipelines import prepare, prepare_command
from data_pipelines import raw as raw_lib
from data_pipelines.dataset import files
from data_pipelines.errors import UserError
from data_pipelines.readers import Skipped
from sm3det_jax import compilation_cache
from sm3det_jax.analysis.doctor import examine, reading


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `sm3det doctor`, for `run`."""
  parser.add_argument('prepared', nargs='?', metavar='NAME', help='prepared data set to look at')
  parser.add_argument('--data_root', metavar='FOLDER', help='where it lies')
  parser.add_argument('--out', required=True, metavar='FOLDER', help='folder of the report')
  parser.add_argument('--strict', action='store_true', help='exit status 1 if anything is wrong')
  raw = parser.add_argument_group('a raw data set, with the arguments of `sm3det prepare`')
  prepare_command.add_source_arguments(raw, required=False)


def run(args: argparse.Namespace, config: ConfigDict | None = None) -> examine.Report:
  """Does what `sm3det doctor` was asked for.

  Args:
    args: of `add_arguments`.
    config: whose anchors are asked how much they reach.

  Raises:
    as `raw.collect` or `Source`, and UserError: no data set is named, or two; it has no image;
      a folder for the report that lies among the data.
  """
  raw = {key: getattr(args, key) for key in ('dataset', 'source') if getattr(args, key)}
  prepared = {key: getattr(args, key) for key in ('prepared', 'data_root') if getattr(args, key)}
  if sorted(map(len, (raw, prepared))) != [0, 2]:
    raise UserError('which data set? say NAME --data_root=FOLDER, or --dataset=FORMAT --source=DIR')
  if prepared:
    prepare_command.check_unused(args, 'a prepared data set')
    out = files.check_out(args.out, [f'{args.data_root}/{args.prepared}'])
    data = reading.of_prepared(args.data_root, args.prepared)
  else:
    skipped = Skipped(encoding=args.encoding, follow_links=args.follow_links)
    arguments = prepare_command.source_arguments(args, skipped)
    out = files.check_out(args.out, arguments['source'])
    with _silent('data_pipelines.readers'):  # the report has it all
      collected = raw_lib.collect(**arguments)
      prepare.count_unmatched(collected, arguments['ignore'], arguments['aliases'])
      data = reading.of_sources(collected, arguments['how'])
  if not data.images:  # a prepared set has some
    raise UserError(f'{data.name} has no image; {data.skipped.summary()}')
  reach = None
  if config is not None:
    from sm3det_jax.analysis.doctor import reach as reach_lib  # lazily: it loads JAX

    compilation_cache.enable()
    reach = reach_lib.shares(data, config)
  return examine.examine(data, out, reach)


@contextlib.contextmanager
def _silent(name: str) -> Iterator[None]:
  """Without a logger's warnings."""
  logger = logging.getLogger(name)
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(level)
