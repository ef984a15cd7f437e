"""Dense PVT-v2 and both Swins against `transformers`, no dependency: skipped where it is absent.

pip install torch transformers && pytest -m slow tests/test_backbones_oracle.py
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm3det_jax import backbones
from sm3det_jax.interop import official, ringmoe

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings('ignore')]
STAGES = ['stage1', 'stage2', 'stage3', 'stage4']

PVT_V2 = (
  (r'encoder\.layers\.(\d+)\.patch_embedding\.', lambda m: f'patch_embed{int(m[1]) + 1}.'),
  (r'encoder\.layers\.(\d+)\.blocks\.', lambda m: f'block{int(m[1]) + 1}.'),
  (r'encoder\.layers\.(\d+)\.layer_norm\.', lambda m: f'norm{int(m[1]) + 1}.'),
  (r'attention\.spatial_reduction', 'attn.sr'),
  (r'attention\.layer_norm', 'attn.norm'),
  (r'attention\.query', 'attn.q'),
  (r'attention\.', 'attn.'),
  (r'layer_norm_(\d)', r'norm\1'),
  (r'(patch_embed\d)\.layer_norm', r'\1.norm'),
  (r'dense(\d)', r'fc\1'),
)
SWIN = (  # to the names of its own repository
  (r'hidden_states_norms\.stage(\d)', lambda m: f'norm{int(m[1]) - 1}'),
  (r'swin\.embeddings\.patch_embeddings\.projection', 'patch_embed.proj'),
  (r'swin\.embeddings\.norm', 'patch_embed.norm'),
  (r'swin\.encoder\.', ''),
  (r'attention\.(relative_position_bias\.)?', 'attn.'),
  (r'o_proj', 'proj'),
  (r'layernorm_before', 'norm1'),
  (r'layernorm_after', 'norm2'),
)
SWIN_V2 = (  # to RingMoE's
  (r'embeddings\.patch_embeddings\.projection', 'patch_embed.0'),
  (r'embeddings\.norm', 'patch_embed.0.norm'),
  (r'encoder\.layers\.(\d)\.', r's\1.'),
  (r'blocks\.(\d)\.', r'b\1.'),
  (r'attention\.self\.', 'attn.'),
  (r'attention\.output\.dense', 'attn.proj'),
  (r'attn\.(q|k|v)\w+\.', r'attn.\1.'),
  (r'continuous_position_bias_mlp\.0\.weight', 'cpb.w1'),
  (r'continuous_position_bias_mlp\.0\.bias', 'cpb.b1'),
  (r'continuous_position_bias_mlp\.2\.weight', 'cpb.w2'),
  (r'intermediate\.dense\.(w|b)\w+', r'ffn.\g<1>1'),
  (r'output\.dense\.(w|b)\w+', r'ffn.\g<1>2'),
  (r'layernorm_before', 'norm1'),
  (r'layernorm_after', 'norm2'),
  (r'downsample\.reduction', 'merge'),
  (r'downsample\.norm', 'merge.norm'),
  (r'norm(\d?)\.weight', r'norm\1.g'),
  (r'\.weight', '.w'),
  (r'\.bias', '.b'),
)


def run(model, rules, images):
  """(state dict by the names after `rules`, stage outputs NHWC) of a model with random weights."""
  torch = pytest.importorskip('torch')
  generator = torch.Generator().manual_seed(0)
  state = {}
  with torch.no_grad():
    for name, p in model.state_dict().items():
      if p.dtype == torch.float32:
        p.add_(torch.randn(p.shape, generator=generator) * 0.2)
      for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
      state[name] = p.numpy().copy()
    out = model.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2))).feature_maps
  return state, [o.numpy().transpose(0, 2, 3, 1) for o in out]


def joined(state, parts, whole):
  """Puts together the arrays `attn.<part>` that the official code keeps in one."""
  out = {n: a for n, a in state.items() if not re.search(rf'attn\.({"|".join(parts)})\.', n)}
  for name in state:
    if f'attn.{parts[0]}.' in name:
      names = [name.replace(f'attn.{parts[0]}.', f'attn.{p}.') for p in parts]
      key = name.replace(f'attn.{parts[0]}.', f'attn.{whole}.')
      out[key] = np.concatenate([state[n] for n in names])
  return out


def compare(arguments, state, images, want):
  backbone, variables = official.backbone(arguments, state)
  for got, stage in zip(backbone.apply(variables, jnp.asarray(images)), want, strict=True):
    assert np.abs(got - stage).max() < 3e-5 * np.abs(stage).max()


def test_pvt_v2():
  transformers = pytest.importorskip('transformers', reason='needs torch and transformers')
  depths, widths, reductions = [2, 1, 2, 1], [8, 16, 20, 32], [8, 4, 2, 1]
  config = transformers.PvtV2Config(
    depths=depths, hidden_sizes=widths, num_attention_heads=[1, 2, 5, 8], mlp_ratios=[8, 8, 4, 4],
    sr_ratios=reductions, out_features=STAGES,
  )  # fmt: skip
  images = np.random.default_rng(0).normal(size=(2, 96, 128, 3)).astype(np.float32)
  state, want = run(transformers.PvtV2Backbone(config), PVT_V2, images)
  state = joined(state, ('key', 'value'), 'kv')
  arguments = dict(
    type='PyramidVisionTransformerV2', depths=depths, embed_dims=widths, num_heads=[1, 2, 5, 8],
    mlp_ratios=[8, 8, 4, 4], sr_ratios=reductions, qkv_bias=True,
  )  # fmt: skip
  compare(arguments, state, images, want)


def test_swin():
  transformers = pytest.importorskip('transformers', reason='needs torch and transformers')
  depths, heads = [2, 2, 2, 1], [3, 3, 6, 6]
  config = transformers.SwinConfig(
    embed_dim=12, depths=depths, num_heads=heads, window_size=4, out_features=STAGES
  )
  # no map is smaller than a window, where this one would take smaller windows
  images = np.random.default_rng(0).normal(size=(2, 160, 128, 3)).astype(np.float32)
  state, want = run(transformers.SwinBackbone(config), SWIN, images)
  state = joined(state, ('q_proj', 'k_proj', 'v_proj'), 'qkv')
  state = {n: a for n, a in state.items() if not n.startswith('swin.layernorm')}
  arguments = dict(
    type='SwinTransformer_MoE', embed_dims=12, depths=depths, num_heads=heads, window_size=4
  )
  compare(arguments, state, images, want)


def test_swin_v2():
  """Maps that neither windows nor merging divide; its backbone has no last norm.

  It takes maps for halves rounded down, none of which is a window here.
  """
  transformers = pytest.importorskip('transformers', reason='needs torch and transformers')
  depths, heads = [2, 2, 2], [2, 2, 4]
  config = transformers.Swinv2Config(
    embed_dim=8, depths=depths, num_heads=heads, window_size=3, image_size=[68, 84],
    out_features=STAGES[:3],
  )  # fmt: skip
  images = np.random.default_rng(0).normal(size=(2, 68, 84, 3)).astype(np.float32)
  state, want = run(transformers.Swinv2Backbone(config), SWIN_V2, images)
  for name in state:
    if name.endswith('logit_scale'):
      state[name] = state[name].ravel()
    elif re.search(r'ffn\.w', name):
      state[name] = state[name].T
  ours = ringmoe.config(dict(image=68, embed=8, depths=depths, heads=heads, window=3, ratio=4))
  state |= {'norm.g': np.ones(32, np.float32), 'norm.b': np.zeros(32, np.float32)}
  params = ringmoe.from_state_dict(state, ours)['params']['backbone']
  module = backbones.build(ours, ours.tasks)
  taps = jax.jit(module.apply)({'params': params}, {'opt': jnp.asarray(images)}).taps['opt']
  for i, stage in enumerate(want):
    assert np.abs(taps[f'stage{i}'] - stage).max() < 3e-5 * np.abs(stage).max()
