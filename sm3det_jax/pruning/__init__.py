"""Smaller models of a pre-trained one with hierarchical experts: its parts that one user needs."""

from sm3det_jax.pruning.layers import frequencies, kept, merge, restrict
from sm3det_jax.pruning.models import dense, pruned, submodel

__all__ = ['dense', 'frequencies', 'kept', 'merge', 'pruned', 'restrict', 'submodel']
