"""The published checkpoints and what is known of each; `sm3det weights` prints the table.

What is not known is empty: few names of the authors' files are public outside of their page on
Kaggle, and hardly any source gives a hash. The paper's numbers are those of docs/tables.md.
"""

import hashlib
import os
import pathlib
from typing import NamedTuple

KAGGLE = 'https://www.kaggle.com/models/greatbird/sm3det'
MMPRETRAIN = 'https://github.com/open-mmlab/mmpretrain/tree/main/configs/convnext'
FACEBOOK = 'https://github.com/facebookresearch/ConvNeXt'
LSKNET = 'https://github.com/zcablii/LSKNet'
VAN = 'https://huggingface.co/Visual-Attention-Network'
PVT = 'https://github.com/whai362/PVT/releases/tag/v2'
SWIN = 'https://github.com/SwinTransformer/storage/releases/tag/v1.0.0'

OTHER_FILE = (
  'a user got @50 of about 46 with this file; the authors think that it may be another one than '
  'they report (github.com/zcablii/SM3Det, issue 73)'
)
ADAPTERS = 'not converted: its adapters are one module for all three tasks, ours one for each'


class Known(NamedTuple):
  """One published file, or a row of the paper whose file may be published; '' is not known.

  Attributes:
    name: what it is called here.
    config: that `sm3det --config` takes.
    where: address of the page that people get it from.
    file: its name there.
    paper: mAP, AP50, AP75 in the paper: overall, of a detector of one data set its own; () none.
    sha256: first digits. OpenMMLab ends the name of a file with the first eight of its hash.
    note: what its user should know.
    detector: a whole detector, not a backbone trained on ImageNet.
  """

  name: str
  config: str
  where: str = ''
  file: str = ''
  paper: tuple[float, ...] = ()
  sha256: str = ''
  note: str = ''
  detector: bool = True


def _detectors():
  """Of the authors; the page that their README names comes first."""
  yield Known(
    'SM3Det-T', 'sm3det_convnext_t', KAGGLE, 'SM3Det_convnext_t/iter_33468.pth',
    (50.20, 80.68, 53.79),
  )  # fmt: skip
  for name, config, paper, note in (
    ('SM3Det-T, DLA only', 'baselines:dla', (49.40, 80.19, 52.93), ''),
    ('uncertainty loss', 'baselines:uncertainty', (48.79, 79.99, 52.50), ''),
    ('UniDet', 'baselines:unidet', (48.47, 79.55, 52.01), ''),
    ('domain attention', 'baselines:domain_attention', (48.37, 79.76, 51.66), ADAPTERS),
    ('simple joint training', 'baselines:simple_joint', (47.05, 77.56, 50.11), ''),
  ):
    yield Known(name, config, KAGGLE, paper=paper, note=note)
  alone = 'baselines:separate,task='
  yield Known('SAR alone', f'{alone}sar', KAGGLE, paper=(57.31, 87.44, 61.99))
  yield Known(
    'optical alone', f'{alone}rgb', KAGGLE, 'dota_convnext_t_orcnn/epoch_12.pth',
    (45.31, 77.70, 46.45), note=OTHER_FILE,
  )  # fmt: skip
  yield Known('infrared alone', f'{alone}ifr', KAGGLE, paper=(46.09, 74.78, 52.79))
  for name, arguments, *paper in (
    ('SM3Det-S', 'size=S', 50.28, 80.13, 54.30),
    ('SM3Det-B', 'size=B', 51.33, 80.77, 55.51),
    ('SM3Det-L', 'size=L', 52.16),
    ('SM3Det, VAN-T', 'backbone=van', 45.46, 76.28, 48.37),
    ('SM3Det, VAN-S', 'backbone=van,size=S', 49.03, 79.60, 52.76),
    ('SM3Det, VAN-B', 'backbone=van,size=B', 49.43, 80.57, 53.34),
    ('SM3Det, LSKNet-T', 'backbone=lsknet', 45.64, 76.89, 48.25),
    ('SM3Det, LSKNet-S', 'backbone=lsknet,size=S', 48.79, 79.78, 52.42),
    ('SM3Det, LSKNet-B', 'backbone=lsknet,size=B', 49.42, 80.34, 53.31),
    ('SM3Det, PVT-v2-T', 'backbone=pvt_v2', 44.58, 76.43, 46.81),
    ('SM3Det, PVT-v2-S', 'backbone=pvt_v2,size=S', 47.31, 79.21, 50.08),
    ('SM3Det, PVT-v2-B', 'backbone=pvt_v2,size=B', 49.34, 80.72, 53.05),
    ('SM3Det, Faster R-CNN', 'sar=faster_rcnn', 48.89, 79.39, 53.20),
    ('SM3Det, RetinaNet, RoI Trans.', 'sar=retinanet,rgb=roi_transformer', 48.01, 78.83, 51.35),
    ('SM3Det, Cascade, RoI Trans.', 'sar=cascade_rcnn,rgb=roi_transformer', 48.59, 79.04, 51.69),
    ('SM3Det, GFL, S2ANet', 'rgb=s2anet', 45.25, 78.90, 45.07),
    ('SM3Det, Faster R-CNN, S2ANet', 'sar=faster_rcnn,rgb=s2anet', 43.12, 77.40, 42.83),
    ('SM3Det, RetinaNet, S2ANet', 'sar=retinanet,rgb=s2anet', 43.13, 77.62, 42.67),
    ('SM3Det, Cascade, S2ANet', 'sar=cascade_rcnn,rgb=s2anet', 43.70, 77.28, 43.03),
  ):
    yield Known(name, f'sm3det:{arguments}', paper=tuple(paper))


def _backbones():
  """Trained on ImageNet, by the name of their backbone."""
  for size, config, file, digits in (
    ('T', 'sm3det_convnext_t', 'convnext-tiny_32xb128_in1k_20221207', '998cf3e9'),
    ('S', 'sm3det:size=S', 'convnext-small_32xb128_in1k_20221207', '4ab7052c'),
    ('B', 'sm3det:size=B', 'convnext-base_32xb128_in1k_20221207', 'fbdb5eb9'),
    ('L', 'sm3det:size=L', 'convnext-large_3rdparty_64xb64_in1k_20220124', 'f8a0ded0'),
  ):
    yield Known(f'ConvNeXt-{size}', config, MMPRETRAIN, f'{file}-{digits}.pth', sha256=digits)
  for size, word in zip('TSBL', ('tiny', 'small', 'base', 'large'), strict=True):
    config = 'sm3det_convnext_t' if size == 'T' else f'sm3det:size={size}'
    yield Known(f'ConvNeXt-{size}', config, FACEBOOK, f'convnext_{word}_1k_224_ema.pth')
  for kind, name, where, files in (
    ('lsknet', 'LSKNet', LSKNET, ('lsk_t_backbone-2ef8a593.pth', 'lsk_s_backbone-e9d2e551.pth')),
    (
      'van', 'VAN', VAN,
      ('van_tiny_754.pth.tar', 'van_small_811.pth.tar', 'van_base_828.pth.tar'),
    ),
    ('pvt_v2', 'PVT-v2', PVT, ('pvt_v2_b0.pth', 'pvt_v2_b1.pth', 'pvt_v2_b2.pth')),
    (
      'swin', 'Swin', SWIN,
      (
        *(f'swin_{s}_patch4_window7_224.pth' for s in ('tiny', 'small', 'base')),
        'swin_large_patch4_window7_224_22kto1k.pth',
      ),
    ),
  ):  # fmt: skip
    for size, file in zip('TSBL', files, strict=False):
      config = f'sm3det:backbone={kind}' + f',size={size}' * (size != 'T')
      stem, _, digits = file.removesuffix('.pth').rpartition('-')
      yield Known(f'{name}-{size}', config, where, file, sha256=digits if stem else '')


KNOWN = (*_detectors(), *(k._replace(detector=False) for k in _backbones()))


def table() -> str:
  """All that is known, a block a page that files come from."""
  lines = []
  for where in dict.fromkeys(k.where for k in KNOWN):
    lines += ['', where or 'no page known: rows of the paper, whose files convert takes']
    for k in (k for k in KNOWN if k.where == where):
      lines.append(f'  {k.name:29} {numbers(k):21} --config={k.config:42} {k.file}'.rstrip())
      lines += [f'  {"":29} {k.note}'] * bool(k.note)
  return '\n'.join([*lines[1:], '', LEGEND])


LEGEND = """Numbers: mAP / AP50 / AP75 of the paper in per cent, overall; of one data set where it is one's alone.
Nothing is downloaded here. What is empty is not known: whether the authors publish a file, its name.
Then: sm3det convert --from official FILE --out WORKDIR"""  # noqa: E501


def numbers(known: Known) -> str:
  """The paper's, '' where it has none."""
  return ' / '.join(f'{value:.2f}' for value in known.paper)


def digest(file: str | os.PathLike) -> str:
  """SHA-256 of a file.

  Raises:
    FileNotFoundError: no such file.
  """
  with open(file, 'rb') as content:
    return hashlib.file_digest(content, 'sha256').hexdigest()


def compared(file: str | os.PathLike, sha256: str) -> str:
  """What the hash of a file says of it, in words."""
  hashed = [k for k in KNOWN if k.sha256]
  for k in hashed:
    if sha256.startswith(k.sha256):
      return f'begins as that of {k.file}'
  for k in hashed:
    if pathlib.Path(file).name == k.file:
      return (
        f'{k.file} of {k.where} begins with {k.sha256}: this file is damaged, or another one; get '
        'it anew'
      )
  return 'none is known to compare it with'
