"""Arguments that several verbs of `sm3det` share, and types of some."""

import argparse
import re


def count(text: str) -> int:
  """A whole number from 1 on."""
  if not (text.isdigit() and int(text)):
    raise argparse.ArgumentTypeError(f'{text!r}: expected a whole number from 1 on')
  return int(text)


def size(text: str) -> tuple[int, int]:
  """(height, width) of HxW."""
  if not re.fullmatch('[1-9][0-9]*x[1-9][0-9]*', text):
    raise argparse.ArgumentTypeError(f'{text!r}: expected HxW, such as 800x800')
  return tuple(map(int, text.split('x')))


def mesh(text: str) -> dict[str, int]:
  """{axis: size} of data:64,expert:4."""
  if not re.fullmatch(r'\w+:[1-9][0-9]*(,\w+:[1-9][0-9]*)*', text):
    raise argparse.ArgumentTypeError(f'{text!r}: expected sizes of axes, as data:64,expert:4')
  return {name: int(size) for name, size in (axis.split(':') for axis in text.split(','))}


def add_tta(parser: argparse.ArgumentParser) -> None:
  """Adds the options that `tta.parse` takes."""
  views = 'detect in views of an image as well: flips,turns,scales:0.8:1.25, or some of these'
  parser.add_argument('--tta', default='', metavar='VIEWS', help=views)
  how = 'how views become one: wbf (default), weighted box fusion, or nms'
  parser.add_argument('--tta_merge', metavar='HOW', help=how)
