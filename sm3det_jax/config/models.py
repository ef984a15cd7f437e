"""The models behind `config.model`, by name; `sm3det_jax.model` says what each has to offer."""

# a class of config, as `registry.resolve` takes it
MODELS = {'m2det': 'sm3det_jax.detector:M2Det', 'simmim': 'sm3det_jax.simmim:SimMIM'}
