"""DOTA text: `x1 y1 x2 y2 x3 y3 x4 y4 class difficult` a line, an empty file without objects."""

from data_pipelines.writers import each, number


def write(folder, split, images, classes):
  """Writes `<split>/labelTxt/<id>.txt`; a class name has no white space."""
  each(folder / split / 'labelTxt', '.txt', images, _text)


def _text(image):
  rows = zip(image.polygons, image.names, image.difficult, strict=True)
  return ''.join(f'{" ".join(map(number, p))} {name} {difficult}\n' for p, name, difficult in rows)
