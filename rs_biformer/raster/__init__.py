"""The only room that opens rasters: scenes and labels read by window, maps written as a stream, polygons."""

from rs_biformer.raster.gdal import gdal_env

__all__ = ["gdal_env"]
