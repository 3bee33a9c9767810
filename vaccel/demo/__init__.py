"""The moving-shapes family: a real trained Wan pipeline small enough to ship with the package.

from vaccel import demo
family = demo.load()
frames = family.pipe("a red circle moves left slowly on a gray background", **family.call).frames
"""

from ..extras import needed

with needed("vaccel.demo"):
    from .family import Family, load
    from .shapes import Scene, Shape, held_out_captions

__all__ = ["Family", "Scene", "Shape", "held_out_captions", "load"]
