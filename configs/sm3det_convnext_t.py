"""SM3Det with ConvNeXt-T on SOI-Det, the paper's main run (its table 1: overall mAP 50.20).

    sm3det prepare --dataset=soi_det --source=SARDET,DOTA,DRONEVEHICLE --data_root=data
    sm3det train --config=sm3det_convnext_t --workdir=runs/sm3det_t --config.data_root=data
    sm3det evaluate --workdir=runs/sm3det_t

33,468 steps of 32 images of 800 px, 16 SAR, 8 optical and 8 infrared; the authors used 8 RTX 3090.
Published mAP: SAR 60.64, DOTA 46.47, DroneVehicle 48.87. In two minutes on a laptop,
with drawn scenes:

    sm3det quickstart --config=sm3det_convnext_t:small=1 --workdir=runs/try
"""

from sm3det_jax.config import ConfigDict, default
from sm3det_jax.config.small import takes_small


@takes_small
def get_config() -> ConfigDict:
  """The released settings, all of them."""
  return default()
