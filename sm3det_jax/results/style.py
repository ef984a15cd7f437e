"""A QGIS style: outlines in the colours of the pictures, one a class.

QGIS takes `x.qml` by itself when it opens `x.gpkg` or `x.geojson` beside it.
"""

import pathlib
from xml.etree import ElementTree

from sm3det_jax.viz import draw


def write(result, path: pathlib.Path) -> None:
  """Writes the style of a file `path`, beside it."""
  path.with_suffix('.qml').write_text(content(result.classes), encoding='utf-8')


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
