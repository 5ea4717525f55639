"""Every op in plain PyTorch: the oracle of the kernels and the CPU path."""
