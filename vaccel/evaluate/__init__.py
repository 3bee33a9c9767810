"""Compares methods on a pipeline: wall time, forwards, memory and fidelity side by side, and a report."""

from ..extras import needed

with needed("vaccel.evaluate"):
    from .compare import Comparison, compare
    from .contenders import Contender, parse_contender
    from .report import write_report

__all__ = ["Comparison", "Contender", "compare", "parse_contender", "write_report"]
