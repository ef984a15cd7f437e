"""Mixture of experts: who goes where (router), how they get there (dispatch), the layer of both.

Letters: `N` tokens (grid cells), `C` channels, `D` hidden channels, `E` experts, `K` top-k.
"""
