"""The report of a run: `record` is what it shows, `page` renders it to one HTML file, `plots` draws its charts.

The record is at hand here; `topiarist.report.page` and `topiarist.report.plots` import the plotting libraries and are
imported where a page or a plot is made.
"""

from topiarist.report.record import (
    AxisRow,
    AxisTie,
    CurvePoint,
    Histogram,
    LayerRow,
    RunRecord,
    Sensitivity,
    SensitivityRow,
    StepRow,
    Variant,
    histogram,
)

__all__ = [
    "AxisRow",
    "AxisTie",
    "CurvePoint",
    "Histogram",
    "LayerRow",
    "RunRecord",
    "Sensitivity",
    "SensitivityRow",
    "StepRow",
    "Variant",
    "histogram",
]
