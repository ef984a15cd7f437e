"""DroneVehicle XML: `<polygon>` x1..y4, in the folders of the release's infrared half.

The images have no border of 100 px: the labels are those of the whole file.
"""

from data_pipelines.errors import UserError
from data_pipelines.readers.dronevehicle_xml import BORDERED
from data_pipelines.readers.xml import CORNERS
from data_pipelines.writers import each, number, xml


def write(folder, split, images, classes):
  """Writes `<split>/<split>labelr/<id>.xml`.

  Raises:
    UserError: an image of the size that readers of this format take for one with the border.
  """
  each(folder / split / f'{split}labelr', '.xml', images, _text)


def _text(image):
  if (image.height, image.width) == BORDERED:
    raise UserError(
      f'{image.file} has 840x712 px, by which readers know a DroneVehicle image with a border of '
      'white; take another format, such as --to=dota_txt'
    )
  corners = (dict(zip(CORNERS, map(number, p), strict=True)) for p in image.polygons)
  return xml(image, [{'polygon': c} for c in corners])
