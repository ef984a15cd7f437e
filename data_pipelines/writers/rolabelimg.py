"""roLabelImg XML: `<robndbox>` cx, cy, w, h, angle in radians, positive clockwise on the screen."""

from data_pipelines.angles import spelled
from data_pipelines.writers import each, number, xml

KEYS = ('cx', 'cy', 'w', 'h', 'angle')


def write(folder, split, images, classes, convention='le90'):
  """Writes `<split>/Annotations/<id>.xml`; `convention` is one of `data_pipelines.angles`."""

  def text(image):
    rows = (
      [*map(number, row[:4]), repr(float(row[4]))] for row in spelled(image.boxes, convention)
    )
    return xml(image, [{'robndbox': dict(zip(KEYS, row, strict=True))} for row in rows])

  each(folder / split / 'Annotations', '.xml', images, text)
