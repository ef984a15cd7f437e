"""Pruning of one hierarchical layer: frequencies, what stays, and the merged FFN."""

import numpy as np
import pytest

from sm3det_jax import pruning

M, S, E, C, D = 3, 2, 4, 4, 16
SHAPES = {'w1': (C, D), 'b1': (D,), 'w2': (D, C), 'b2': (C,)}


@pytest.fixture
def layer():
  r = np.random.default_rng(0)
  found = {'spec.router': r.normal(size=(M, S, C)), 'coll.router': r.normal(size=(E, C))}
  for name, lead in (('spec', (M, S)), ('coll', (E,)), ('shared', ())):
    found |= {f'{name}.{k}': r.normal(size=(*lead, *shape)) for k, shape in SHAPES.items()}
  return {k: v.astype(np.float32) for k, v in found.items()}


def experts(layer, modalities, key):
  """All matrices or biases of a key, float64: (specialised, collaborative, shared)."""
  wide = lambda a: np.asarray(a, np.float64)
  spec = [wide(layer[f'spec.{key}'][m, s]) for m in modalities for s in range(S)]
  return spec, [wide(a) for a in layer[f'coll.{key}']], wide(layer[f'shared.{key}'])


def test_frequencies_are_shares_of_a_modalitys_tokens():
  indices = np.array([[0, 1], [1, 2], [1, 0], [3, 1]])
  got = pruning.frequencies(indices, np.array([0, 0, 0, 2]), M, E)
  np.testing.assert_allclose(got, [[2 / 3, 1, 1 / 3, 0], [0] * 4, [0, 1, 0, 1]])


def test_kept_are_those_strictly_above_the_threshold(caplog):
  f = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.1, 0.1, 0.4]])
  np.testing.assert_array_equal(pruning.kept(f[0]), [False, False, False, True])
  np.testing.assert_array_equal(pruning.kept(f[0], percentile=50), [False, False, True, True])
  np.testing.assert_array_equal(pruning.kept(f, threshold=0.3).any(0), [True, False, False, True])
  assert not caplog.text
  np.testing.assert_array_equal(pruning.kept(f)[1], [True, False, False, True])
  np.testing.assert_array_equal(pruning.kept(np.full(E, 0.25)), [True] * E)
  assert 'the most used stay' in caplog.text


def test_restrict_cuts_collaborative_experts_alone(layer):
  small = pruning.restrict(layer, [True, False, False, True])
  assert set(small) == set(layer)
  for k, a in layer.items():
    np.testing.assert_array_equal(small[k], a[[0, 3]] if k.startswith('coll.') else a)


@pytest.mark.parametrize('how', ['ks', 'ka'])
def test_sums_and_means(layer, how):
  got = pruning.merge(layer, (0, 2), how)
  for key in SHAPES:
    spec, coll, shared = experts(layer, (0, 2), key)
    want = (np.sum if how == 'ks' else np.mean)([*spec, *coll, shared], axis=0)
    np.testing.assert_allclose(got[key], want, rtol=1e-5, atol=1e-6)
    assert got[key].dtype == np.float32


def nearest(matrix, rank):
  """By the eigenvectors of A A^T."""
  _, vectors = np.linalg.eigh(matrix @ matrix.T)
  top = vectors[:, ::-1][:, :rank]
  return top @ top.T @ matrix


RANKS = [  # of w1 and w2, for specialised and collaborative experts
  ('min_dim', (2, 1), (2, 1)), ('columns', (4, 4), (2, 1)), ('literal', (4, 4), (4, 4))
]  # fmt: skip


@pytest.mark.parametrize('rank, of_w1, of_w2', RANKS)
def test_low_rank_sums(layer, rank, of_w1, of_w2):
  got = pruning.merge(layer, (1,), 'kc', rank=rank)
  for key, ranks in (('w1', of_w1), ('w2', of_w2)):
    spec, coll, shared = experts(layer, (1,), key)
    want = sum(nearest(a, ranks[0]) for a in spec) + sum(nearest(a, ranks[1]) for a in coll)
    np.testing.assert_allclose(got[key], want + shared, atol=1e-5)
  summed = pruning.merge(layer, (1,), 'ks')
  np.testing.assert_array_equal(got['b1'], summed['b1'])
  assert np.allclose(got['w2'], summed['w2'], atol=1e-5) == (rank == 'literal')


def test_a_layer_that_lost_a_group_is_merged_too(layer):
  rest = {k: v for k, v in layer.items() if not k.startswith('coll.')}
  spec, _, shared = experts(layer, (0,), 'w1')
  np.testing.assert_allclose(pruning.merge(rest, how='ks')['w1'], sum(spec) + shared, atol=1e-5)


def test_what_cannot_be_pruned_is_one_line(layer):
  dense = {k: v for k, v in layer.items() if k.startswith('shared.')}
  refused = lambda match: pytest.raises(ValueError, match=match)
  with refused('without collaborative experts cannot be pruned: it has shared'):
    pruning.restrict(dense, [True] * E)
  with refused('one truth value for each of 4 experts'):
    pruning.restrict(layer, [True])
  with refused('keep=.*False'):
    pruning.restrict(layer, [False] * E)
  with refused('dense already: it has shared'):
    pruning.merge(dense)
  with refused('modality 3 is none of the 3'):
    pruning.merge(layer, (0, 3))
  with refused("how='sum'.*'kc'"):
    pruning.merge(layer, how='sum')
  with refused("rank='full'.*'min_dim'"):
    pruning.merge(layer, rank='full')
