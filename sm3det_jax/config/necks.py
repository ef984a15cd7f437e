"""The necks that `config.neck.type` may name."""

from sm3det_jax.config.registry import NeckKind

NECKS = {'fpn': NeckKind('sm3det_jax.necks.fpn:FPN', 'sm3det_jax.interop.official:fpn_entries')}
