"""SM3Det in JAX: one model detects objects in SAR, optical and infrared images."""

__version__ = '0.1.0'


def __getattr__(name):
  if name == 'Detector':  # lazily: the class pulls in the whole model
    from sm3det_jax.predict import Detector

    return Detector
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
