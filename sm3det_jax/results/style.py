"""A QGIS style: outlines in the colours of the pictures, one a class.

QGIS takes `x.qml` by itself when it opens `x.gpkg` or `x.geojson` beside it. What the user made of
it stays: a comment has the digest of what was written, and a style without that is not replaced.
"""

import functools
import hashlib
import logging
import pathlib
from xml.etree import ElementTree

from sm3det_jax.viz import draw

logger = logging.getLogger(__name__)


def write(result, path: pathlib.Path) -> None:
  """Writes the style of a file `path`, beside it, unless one that is not of this lies there."""
  place = path.with_suffix('.qml')
  if place.exists() and not _is_ours(place.read_bytes()):
    _say_left(place)
  else:
    place.write_bytes(_marked(content(result.classes).encode()))


def _marked(text):
  return text + f'<!-- as sm3det_jax wrote it: {hashlib.sha256(text).hexdigest()} -->\n'.encode()


def _is_ours(found):
  return found == _marked(found[: found.rfind(b'<!--')])


@functools.cache  # once a file
def _say_left(place):
  logger.warning('%s stays as it is: somebody changed this style; remove it for a new one', place)


def content(classes: tuple[str, ...]) -> str:
  """The XML of classes, in the order of their labels."""
  root = ElementTree.Element('qgis', version='3.28', styleCategories='Symbology')
  renderer = ElementTree.SubElement(root, 'renderer-v2', type='categorizedSymbol', attr='class')
  categories = ElementTree.SubElement(renderer, 'categories')
  symbols = ElementTree.SubElement(renderer, 'symbols')
  for label, name in enumerate(classes):
    key = dict(symbol=str(label), value=name, label=name, render='true', type='string')
    ElementTree.SubElement(categories, 'category', key)
    symbol = ElementTree.SubElement(symbols, 'symbol', type='fill', name=str(label), alpha='1')
    layer = ElementTree.SubElement(symbol, 'layer', {'class': 'SimpleLine', 'enabled': '1'})
    options = ElementTree.SubElement(layer, 'Option', type='Map')
    color = ','.join(map(str, (*draw.color(label), 255)))
    for name, value in (('line_color', color), ('line_width', '0.5')):
      ElementTree.SubElement(options, 'Option', type='QString', name=name, value=value)
  ElementTree.indent(root)
  return ElementTree.tostring(root, encoding='unicode') + '\n'
