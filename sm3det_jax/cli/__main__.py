"""`python -m sm3det_jax.cli`."""

import sys

from sm3det_jax.cli import main

if __name__ == '__main__':  # a worker process that is spawned imports it again
  sys.exit(main())
