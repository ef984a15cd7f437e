"""What `sm3det_jax.predict` is made of.

sources      what one may give: an image, a folder, a glob, a list, a generator
selection    what is asked for: tasks, thresholds, a device
series       images one after the other -> results
scene        windows of them, read ahead, put together
tta          views of an image, merged
batches      windows -> full batches on the device
progress     a bar, or a line now and then
journal      what an interrupted command has found
result_files the folder of results
command      the verb
"""
