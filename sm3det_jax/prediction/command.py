"""`sm3det predict`: the arguments of the verb, and what it does with them."""

import argparse

from sm3det_jax.config import command_line

INTERRUPTED = 'interrupted; the same command with --resume goes on'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `sm3det predict`, for `run`."""
  what = 'whose head looks, e.g. sar; several (sar,rgb); or auto: the one that each file decides'
  parser.add_argument('--task', required=True, help=f'task {what}')
  parser.add_argument('--out', required=True, help='folder of the pictures and JSON files')
  scores = 'from which a detection counts, 0.3 by default; or of classes: ship=0.5,plane=0.3'
  parser.add_argument('--score_threshold', default='0.3', metavar='SCORE', help=f'score {scores}')
  formats = 'further formats: geojson,gpkg,coco,dota,yolo_obb,csv'
  parser.add_argument('--save', default='', help=formats)
  parser.add_argument('--device', help='cpu, gpu, tpu, or the second as cuda:1; an index')
  parser.add_argument('--resume', action='store_true', help='go on where this was interrupted')
  command_line.add_tta(parser)
  images = 'image files, folders of them, globs, text files (.txt) of paths'
  parser.add_argument('images', nargs='+', metavar='IMAGE', help=images)


def run(args: argparse.Namespace) -> int:
  """Does what `sm3det predict` was asked for; 1 if a file could not be used or saved."""
  from sm3det_jax import predict
  from sm3det_jax.prediction import selection, tta  # lazily: they load JAX

  augmentation = tta.parse(args.tta, args.tta_merge)
  save = [name for part in args.save.split(',') if (name := part.strip())]
  threshold = selection.parse_threshold(args.score_threshold)
  try:
    problems = predict.predict(
      args.workdir, args.task, args.images, args.out, threshold, save, args.resume, args.device,
      augmentation,
    )  # fmt: skip
  except KeyboardInterrupt:
    raise KeyboardInterrupt(INTERRUPTED) from None
  return 1 if problems else 0
