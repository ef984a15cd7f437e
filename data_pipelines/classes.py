"""Class lists of the public data sets, and the label spaces that heads score."""

from ml_collections import ConfigDict

SAR_CLASSES = ('ship', 'aircraft', 'car', 'tank', 'bridge', 'harbor')
# SOI-Det renames three DOTA classes, so that the joint label space has no name twice.
DOTA_CLASSES = (
  'small-vehicle', 'large-vehicle', 'plane', 'Ship', 'Harbor', 'tennis-court', 'soccer-ball-field',
  'ground-track-field', 'baseball-diamond', 'swimming-pool', 'roundabout', 'basketball-court',
  'storage-tank', 'Bridge', 'helicopter',
)  # fmt: skip
DRONEVEHICLE_CLASSES = ('CAR', 'BUS', 'FERIGHT_CAR', 'TRUCK', 'VAN')
HITUAV_CLASSES = ('Person', 'Car', 'Bicycle', 'OtherVehicle')
# as released
DOTA_V10 = (
  'plane', 'baseball-diamond', 'bridge', 'ground-track-field', 'small-vehicle', 'large-vehicle',
  'ship', 'tennis-court', 'basketball-court', 'storage-tank', 'soccer-ball-field', 'roundabout',
  'harbor', 'swimming-pool', 'helicopter',
)  # fmt: skip
DOTA_V15 = DOTA_V10 + ('container-crane',)
DOTA_V20 = DOTA_V15 + ('airport', 'helipad')


def joint_classes(config: ConfigDict) -> tuple[str, ...]:
  """Every class name once, tasks in order (for SOI-Det the paper's 26)."""
  return tuple(dict.fromkeys(n for c in config.tasks.values() for n in c.classes))


def label_space(config: ConfigDict, name: str) -> tuple[str, ...]:
  """Class names that the head of task `name` scores, in label order."""
  return (
    joint_classes(config) if config.label_space == 'joint' else tuple(config.tasks[name].classes)
  )
