"""The models behind `config.model`, by name; `sm3det_jax.model` says what each has to offer."""

MODELS = {'m2det': 'sm3det_jax.detector:M2Det'}  # a class of config, as `registry.resolve` takes it
