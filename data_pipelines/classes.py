"""Class lists of the public data sets, and the label spaces that heads score."""

from ml_collections import ConfigDict

SAR_CLASSES = ('ship', 'aircraft', 'car', 'tank', 'bridge', 'harbor')
SAR_AIRCRAFT_CLASSES = ('A220', 'A320/321', 'A330', 'ARJ21', 'Boeing737', 'Boeing787', 'other')
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
DIOR_CLASSES = (
  'airplane', 'airport', 'baseballfield', 'basketballcourt', 'bridge', 'chimney',
  'expressway-service-area', 'expressway-toll-station', 'dam', 'golffield', 'groundtrackfield',
  'harbor', 'overpass', 'ship', 'stadium', 'storagetank', 'tenniscourt', 'trainstation', 'vehicle',
  'windmill',
)  # fmt: skip
FAIR1M_CLASSES = (
  'Boeing737', 'Boeing747', 'Boeing777', 'Boeing787', 'ARJ21', 'C919', 'A220', 'A321', 'A330',
  'A350', 'other-airplane', 'Passenger Ship', 'Motorboat', 'Fishing Boat', 'Tugboat',
  'Engineering Ship', 'Liquid Cargo Ship', 'Dry Cargo Ship', 'Warship', 'other-ship', 'Small Car',
  'Bus', 'Cargo Truck', 'Dump Truck', 'Van', 'Trailer', 'Tractor', 'Excavator', 'Truck Tractor',
  'other-vehicle', 'Basketball Court', 'Tennis Court', 'Football Field', 'Baseball Field',
  'Intersection', 'Roundabout', 'Bridge',
)  # fmt: skip
SODA_CLASSES = (
  'airplane', 'helicopter', 'small-vehicle', 'large-vehicle', 'ship', 'container', 'storage-tank',
  'swimming-pool', 'windmill',
)  # fmt: skip
STAR_CLASSES = (
  'ship', 'boat', 'crane', 'goods_yard', 'tank', 'storehouse', 'breakwater', 'dock', 'airplane',
  'boarding_bridge', 'runway', 'taxiway', 'terminal', 'apron', 'gas_station', 'truck', 'car',
  'truck_parking', 'car_parking', 'bridge', 'cooling_tower', 'chimney', 'vapor', 'smoke', 'genset',
  'coal_yard', 'lattice_tower', 'substation', 'wind_mill', 'cement_concrete_pavement', 'toll_gate',
  'flood_dam', 'gravity_dam', 'ship_lock', 'ground_track_field', 'basketball_court',
  'engineering_vehicle', 'foundation_pit', 'intersection', 'soccer_ball_field', 'tennis_court',
  'tower_crane', 'unfinished_building', 'arch_dam', 'roundabout', 'baseball_diamond', 'stadium',
  'containment_vessel',
)  # fmt: skip


def joint_classes(config: ConfigDict) -> tuple[str, ...]:
  """Every class name once, tasks in order (for SOI-Det the paper's 26)."""
  return tuple(dict.fromkeys(n for c in config.tasks.values() for n in c.classes))


def label_space(config: ConfigDict, name: str) -> tuple[str, ...]:
  """Class names that the head of task `name` scores, in label order."""
  return (
    joint_classes(config) if config.label_space == 'joint' else tuple(config.tasks[name].classes)
  )
