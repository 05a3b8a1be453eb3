"""LoRAs as inputs of engines: their files, the layers they change, and their places in a build's slots.

A build with slots computes y + ((x · A) · s) · B in every layer that a LoRA can change (Hu et al. 2021,
arXiv:2106.09685). A (in, R) and B (R, out) hold the matrices of all loaded LoRAs side by side, and s (rows, 1, R) says
how strongly each row of a batch uses each of the R ranks. All three are inputs, so that no weight is ever rewritten.
"""
