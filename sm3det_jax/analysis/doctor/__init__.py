"""`sm3det doctor`: what is in a data set, and what is wrong with it.

`reading` makes a `dataset` of a raw or a prepared set, `pixels` looks at one image, `findings` is
the table of what may be wrong, `summary` counts, `reach` asks the anchors of a config, `pictures`
and `page` make the report, and `examine` does all of it. Only `reach` loads JAX.
"""
