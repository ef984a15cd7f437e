"""Every real data set at hand through its reader: counts, agreement of its several label forms."""

import collections
import json

import cv2
import numpy as np
import pytest

from data_pipelines import boxes as box_lib
from data_pipelines import images, tiling
from data_pipelines.builders.presets import DOTA_V10, FORMATS
from data_pipelines.prepare import prepare
from data_pipelines.readers import Skipped
from data_pipelines.source import Source
from sm3det_jax.metrics import polygon

HITUAV = {'train': (240, 2151), 'val': (40, 316), 'test': (110, 893)}


def read(form, folder, labels, images, split='train', **options):
  """({id: annotation}, counts of what was skipped)."""
  row = FORMATS[form]
  skipped = Skipped()
  found = row.read(
    folder, split, labels=labels, images=images, skipped=skipped, **row.options, **options
  )
  return {a.id: a for a in found}, skipped.counts


def objects(annotations):
  return sum(len(a.names) for a in annotations.values())


def classes(annotations):
  return collections.Counter(n for a in annotations.values() for n in a.names)


def same_boxes(a, b, atol):
  """Two annotations' objects cover the same rectangles, in the same order."""
  assert len(a.boxes) == len(b.boxes), a.id
  p, q = (box_lib.to_polygon(x.boxes).reshape(-1, 4, 1, 2) for x in (a, b))
  nearest = np.linalg.norm(p - q.reshape(-1, 1, 4, 2), axis=-1).min(2)
  assert (nearest < atol).all(), (a.id, nearest.max())


# SAR


def test_ssdd_coco_and_voc_agree(real_data):
  folder = real_data / 'sar_ssdd'
  for split, (count, ships) in {'train': (400, 721), 'test': (232, 546)}.items():
    place = f'JPEGImages/{split}'
    coco, skipped = read('coco', folder, f'Annotations/{split}.json', place)
    assert (len(coco), objects(coco), set(classes(coco))) == (count, ships, {'ship'})
    assert not skipped
    voc, skipped = read('voc', folder, 'voc_xml', place, split)
    assert voc.keys() == coco.keys() and skipped == {'label file without an image': 632 - count}
    rotated, _ = read('voc_rotated', folder, 'voc_xml', place, split)
    for id, a in coco.items():
      np.testing.assert_array_equal(voc[id].boxes, a.boxes)
      # corners of the file (whole pixels) and its centre, sides and angle are one rectangle
      r = rotated[id]
      raw, ours = (
        r.polygons.reshape(-1, 4, 1, 2),
        box_lib.to_polygon(r.boxes).reshape(-1, 1, 4, 2),
      )
      assert (np.linalg.norm(raw - ours, axis=-1).min(2) < 3).all(), id


def test_ssdd_agrees_with_the_official_json(real_data):
  folder = real_data / 'sar_ssdd'
  for split in ('train', 'test'):
    ours, _ = read('coco', folder, f'Annotations/{split}.json', f'JPEGImages/{split}')
    official, _ = read('coco', folder, f'official_coco_check/{split}.json', f'JPEGImages/{split}')
    for id in ours.keys() & official.keys():
      np.testing.assert_allclose(ours[id].boxes, official[id].boxes, atol=1.01)  # truncated to int


def test_hrsid(real_data):
  folder = real_data / 'sar_hrsid'
  found, skipped = read('coco', folder, 'Annotations/offshore_train.json', 'JPEGImages')
  listed = json.loads((folder / 'Annotations/offshore_train.json').read_text())
  missing = [i for i in listed['images'] if not (folder / 'JPEGImages' / i['file_name']).is_file()]
  assert len(listed['images']) == 31 and skipped == {'image file missing': len(missing)}
  assert len(found) == 31 - len(missing)
  gone = {i['id'] for i in missing}
  assert objects(found) == sum(a['image_id'] not in gone for a in listed['annotations']) > 40
  for a in found.values():
    assert images.read(a.image).shape[:2] == images.size(a.image) == (800, 800)
  # the one test image is a png where the json says jpg
  found, skipped = read('coco', folder, 'Annotations/inshore_test.json', 'official_samples')
  assert (len(found), objects(found)) == (1, 7)
  assert skipped == {'image file under another suffix (mended)': 1}


# optical


def test_dota(real_data):
  found, skipped = read('dota_txt', real_data / 'optical_dota', 'labelTxt', 'images')
  assert (len(found), objects(found)) == (11, 1285) and not skipped
  assert len(classes(found)) == 11 and set(classes(found)) <= set(DOTA_V10)
  assert set(found['P1478__1__853___962'].difficult.tolist()) == {0, 1, 2}
  last = found['P0004__1__0___0'].polygons[-1:]
  assert box_lib.self_crossing(last).all()
  shapes = [images.read(a.image).shape for a in found.values()]
  assert {s[2] for s in shapes} == {3}  # P0004__1__0___0.png has alpha
  rgba = cv2.imread(str(found['P0004__1__0___0'].image), cv2.IMREAD_UNCHANGED)
  assert rgba.shape[2] == 4
  np.testing.assert_array_equal(images.read(found['P0004__1__0___0'].image), rgba[..., 2::-1])
  assert max(s[0] for s in shapes) == 2304 or max(s[1] for s in shapes) == 2304
  for a in found.values():  # the rectangle contains its quadrilateral
    area = np.abs(polygon.area(a.polygons.reshape(-1, 4, 2)))
    assert (a.boxes[:, 2] * a.boxes[:, 3] >= area - 1e-2 * area - 0.5).all()


def test_dota_tiles_take_the_labels_of_full_images(real_data):
  folder = real_data / 'optical_dota/val_tiles_labels_by_full_image'
  found, skipped = read('dota_txt', folder, 'full_image_labelTxt', 'images')
  assert len(found) == 6 and not skipped and all(len(a.names) for a in found.values())
  whole = {p.stem: p.read_text().count('\n') for p in (folder / 'full_image_labelTxt').glob('*')}
  for id, a in found.items():
    image, rate, x, y = tiling.parse_patch(id)
    assert rate == 1 and len(a.names) <= whole[image]
    inside = tiling.kept_fraction(a.polygons, [[0, 0, 1024, 1024]])
    assert (inside >= 0.7).all()
    shifted = ' '.join(f'{v:.1f}' for v in a.polygons[0] + np.tile([x, y], 4))
    text = (folder / f'full_image_labelTxt/{image}.txt').read_text()
    numbers = [
      [float(t) for t in line.split()[:8]] for line in text.splitlines() if line[:1].isdigit()
    ]
    assert shifted in {' '.join(f'{v:.1f}' for v in row) for row in numbers}


def test_dota8(real_data):
  folder = real_data / 'optical_dota8'
  found = {}
  for split in ('train', 'val'):
    part, skipped = read('yolo_obb', folder, f'labels/{split}', f'images/{split}')
    assert len(part) == 4 and not skipped
    found |= part
  assert objects(found) == 133
  points = np.concatenate([a.polygons for a in found.values()])
  assert points.min() < 0 or points.max() > 1024  # corners may leave the image
  assert {'tennis court', 'small vehicle'} <= set(
    classes(found)
  )  # DOTA's names, but for the hyphen


def test_planes_in_three_forms(real_data):
  folder = real_data / 'optical_planes'
  coco, skipped = read('coco_rotated', folder, 'annotations/train.json', 'images')
  assert (len(coco), objects(coco)) == (91, 707) and not skipped
  rolabelimg, skipped = read('rolabelimg', folder, 'roLabelImg_xml', 'images')
  assert len(rolabelimg) == 43 and skipped == {'image without a label file': 48}
  dota, skipped = read('dota_txt', folder, 'derived_dota_labelTxt', 'images')
  assert (len(dota), objects(dota)) == (91, 707) and not skipped
  for id, a in coco.items():
    same_boxes(a, dota[id], atol=0.05)
  for id, a in rolabelimg.items():
    same_boxes(a, coco[id], atol=1.5)  # the json's angle was rounded


# infrared


@pytest.mark.parametrize('split', list(HITUAV))
def test_hituav_in_four_forms(real_data, split):
  folder, (count, total) = real_data / 'ir_hituav', HITUAV[split]
  coco, skipped = read('coco_rotated', folder, f'annotations/{split}.json', split)
  assert (len(coco), objects(coco)) == (count, total) and not skipped
  assert set(classes(coco)) == {'Person', 'Car', 'Bicycle', 'OtherVehicle', 'DontCare'}
  angles = [
    a['bbox'][4]
    for a in json.loads((folder / f'annotations/{split}.json').read_text())['annotations']
  ]
  assert max(angles) > np.pi / 2  # in 0 .. pi, read as radians
  forms = {
    'rolabelimg': ('rotate_xml', 0.1),
    'dota_txt': (f'derived_dota/{split}', 0.1),
    'dronevehicle_xml': (f'derived_dronevehicle_xml/{split}', 0.1),
  }
  for form, (labels, atol) in forms.items():
    found, skipped = read(form, folder, labels, split)
    assert found.keys() == coco.keys()
    assert set(skipped) <= {'label file without an image'}
    for id, a in found.items():
      same_boxes(a, coco[id], atol)
      ignored = np.array([n == 'DontCare' for n in a.names], bool)
      expected = {
        'rolabelimg': coco[id].difficult,
        'dota_txt': coco[id].difficult | ignored,
        'dronevehicle_xml': 0 * coco[id].difficult,
      }[form]
      np.testing.assert_array_equal(a.difficult, expected)
      assert a.names == coco[id].names
  image = images.read(next(iter(coco.values())).image)
  assert image.shape == (512, 640, 1) and image.dtype == np.uint8


# prepared


def test_real_sets_prepare_and_come_back(real_data, tmp_path):
  """The wide DOTA image through its blocks, the small ones byte for byte."""
  folder = real_data / 'optical_dota'
  report = prepare('dota', folder, tmp_path)
  assert report.images == {'train': 11}
  assert sum(report.objects['train']) == 1285 - 3 - 2
  assert report.skipped == {
    'box outside the image': 3,
    'box with a side under 2 px': 2,
    'self-crossing quadrilateral (kept as its minimum-area rectangle)': 1,
  }
  whole = Source(tmp_path, 'dota', 'train')
  assert report.classes == whole.classes == DOTA_V10
  large = max(range(11), key=lambda i: whole._index['sizes'][i].max())
  expected = images.read(folder / f'images/{whole[large]["id"]}.png')
  np.testing.assert_array_equal(whole[large]['image'], expected)
  tiles = Source(tmp_path, 'dota', 'train', dict(size=512, overlap=256, keep=0.7))
  assert len(tiles) > 150 and tiles.num_objects.sum() > 1280
  for i in np.flatnonzero(tiles.num_objects)[::60]:
    sample = tiles[i]
    pixels = images.read(folder / f'images/{sample["id"]}.png')
    (x, y), (h, w) = sample['offset'], sample['image'].shape[:2]
    np.testing.assert_array_equal(sample['image'], pixels[y : y + h, x : x + w])


def test_hituav_without_dontcare(real_data, tmp_path):
  report = prepare('hituav', real_data / 'ir_hituav', tmp_path)
  assert report.images == {k: v[0] for k, v in HITUAV.items()}
  assert sum(map(sum, report.objects.values())) == 2151 + 316 + 893 - 27
  assert report.skipped == {"object of the ignored class 'DontCare'": 27}
  assert sum(report.empty.values()) == 4
