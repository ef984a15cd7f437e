"""`sm3det bench rmoe` at a small size."""

import pytest

from sm3det_jax import config
from sm3det_jax.bench import rmoe


@pytest.mark.slow  # four compilations
def test_the_layer_is_measured_beside_dense_ffns(monkeypatch):
  for name, value in (('CHANNELS', 16), ('HIDDEN', 32), ('TOKENS', 256)):
    monkeypatch.setattr(rmoe, name, value)
  found = rmoe.measure(config.load(['--config=quickstart']), steps=1)
  assert found['layer_over_dense'] == pytest.approx(found['layer_ms'] / found['dense_ms'])
  assert found['skewed_over_layer'] == pytest.approx(found['skewed_ms'] / found['layer_ms'])
  assert found['largest_share'] < 0.4 and found['largest_share_skewed'] > 0.6
