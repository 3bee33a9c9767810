"""Triton kernels, one file an op.

``kernels/`` is a source root, not a package: diffusers imports a package of that name.
"""
