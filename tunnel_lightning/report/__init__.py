"""Figures, tables and the page of a run, from its rows or files alone. No torch."""

from tunnel_lightning.report.build import write_report
from tunnel_lightning.report.figures import depth_profile, heat_map, save, to_image
from tunnel_lightning.report.table import print_profile, profile_table

__all__ = ["depth_profile", "heat_map", "print_profile", "profile_table", "save", "to_image", "write_report"]
