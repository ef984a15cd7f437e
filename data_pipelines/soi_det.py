"""SOI-Det, the paper's data, from the releases of SARDet-100K, DOTA-v1.0 and DroneVehicle."""

import pathlib
import re
from collections.abc import Callable, Sequence

from data_pipelines import prepare as prepare_lib
from data_pipelines.errors import UserError
from data_pipelines.readers import Skipped
from data_pipelines.source import Source

# the parts of SARDet-100K that SOI-Det takes, and those it leaves
TAKEN = ('HRSID', 'MSAR', 'SADD', 'OGSOD', 'SIVED')
LEFT = ('AIR_SARShip', 'SAR-AIRcraft', 'ShipDataset', 'SSDD')
FOLDERS = {
  'sar': ('SARDet_50K', 'SARDet_100K', 'SARDet-100K', 'SARDet100K', 'sardet100k'),
  'rgb': ('DOTA_800pix', 'DOTA', 'DOTA-v1.0', 'DOTA_v1.0', 'dota'),
  'ifr': ('DroneVehicle', 'dronevehicle'),
}
TILE = dict(size=800, overlap=400, keep=0.7)
# images and objects of the paper's table
PAPER = {
  'sar': {'train': (47_097, 125_462), 'test': (4_481, 12_566)},
  'rgb': {'train': (25_028, 337_728), 'test': (17_041, 95_380)},
  'ifr': {'train': (17_990, 316_411), 'test': (8_980, 159_616)},
}
WHY = {
  'sar': 'The paper takes HRSID, MSAR, SADD, OGSOD and SIVED; its released code trains on 46,260\n'
  'of its 47,097 images. Other numbers: another list of images (--subset), or files left out.',
  'rgb': 'The paper counts patches of 800 px with 400 px overlap. Training and evaluation use\n'
  'those with objects (of 17,041 test patches a released log evaluates 7,773). How its splitter\n'
  'treats an object that a border cuts is not published; here 70 % of its area must lie inside.',
  'ifr': 'The paper counts the release with misspelt classes mapped and broken files left out.\n'
  'Other numbers: boxes with a side under 2 px or outside the image, or other files left out.',
}


def prepare(
  sources: Sequence,
  data_dir,
  subset: Callable[[str], bool] | None = None,
  skipped: Callable[[], Skipped] = Skipped,
) -> list[prepare_lib.Report]:
  """Writes soi_det_sar, soi_det_rgb and soi_det_ifr; their reports compare with the paper.

  DOTA may be whole images, cut on the fly in training (800 px, 400 px overlap), or patches.

  Args:
    sources: one folder that holds the three releases, or the three folders: SAR, optical, infrared.
    data_dir: root of the prepared data sets.
    subset: which images of SARDet-100K to take, by file name without suffix; by default told by the
      names, except for the authors' own extract (SARDet_50K), which is taken whole.
    skipped: makes what counts the things that each release leaves out.

  Raises:
    FileNotFoundError: a release is not there.
    UserError: file names that do not tell the part of SARDet-100K, and no subset.
  """
  folders = _folders([pathlib.Path(s) for s in sources])
  if subset is None and not list(folders['sar'].glob('Annotations/after_merge_*.json')):
    subset = in_subset
  reports = []
  for task, folder in folders.items():
    only = subset if task == 'sar' else None
    report = prepare_lib.prepare(
      f'soi_det_{task}', folder, data_dir, subset=only, skipped=skipped()
    )
    reports.append(report.with_note(compare(task, data_dir)))
  return reports


def _folders(sources):
  if len(sources) == 3:
    return dict(zip(FOLDERS, sources, strict=True))
  if len(sources) != 1:
    raise UserError(
      f'soi_det needs one source or three (SAR, optical, infrared), not {len(sources)}'
    )
  found = {}
  for task, names in FOLDERS.items():
    there = [sources[0] / n for n in names if (sources[0] / n).is_dir()]
    if not there:
      raise FileNotFoundError(
        f'soi_det: {sources[0]} has none of the folders {", ".join(names)}; '
        'or give three sources: --source=SAR,OPTICAL,INFRARED'
      )
    found[task] = there[0]
  return found


def in_subset(id: str) -> bool:
  """Whether an image of SARDet-100K is in SOI-Det, by its file name.

  Told are names that begin with the part's name, and HRSID's own (P0001_0_800_1200_2000).

  Raises:
    UserError: the name does not tell; the release numbers its files, so that takes a list.
  """
  name = id.rpartition('/')[2]
  if re.fullmatch(r'P\d{4}(_\d+){4}', name):
    return True
  plain = re.sub('[-_ ]', '', name).lower()
  for names, answer in ((TAKEN, True), (LEFT, False)):
    if plain.startswith(tuple(re.sub('[-_ ]', '', n).lower() for n in names)):
      return answer
  raise UserError(
    f'the file name {id!r} does not tell which part of SARDet-100K it is from; give the images of '
    f'{", ".join(TAKEN)} with --subset=FILE (a name a line, or a COCO json of the subset)'
  )


def compare(task: str, data_dir) -> str:
  """Table of our counts beside the paper's, and why they may differ."""
  rows = [[f'soi_det_{task}', 'images', 'with objects', 'objects', 'paper: images', 'objects']]
  exact = True
  for split, paper in PAPER[task].items():
    counts = Source(
      data_dir, f'soi_det_{task}', split, tile=TILE if task == 'rgb' else None
    ).num_objects
    ours = len(counts), int((counts > 0).sum()), int(counts.sum())
    exact &= ours[2] == paper[1] and paper[0] in ours[:2]
    rows.append([split, *ours, *paper])
  return prepare_lib.columns(rows) + ('' if exact else f'\n{WHY[task]}')
