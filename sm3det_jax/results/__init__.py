"""What was found in an image, and the files that other tools take it in."""

from sm3det_jax.results.result import Result as Result
