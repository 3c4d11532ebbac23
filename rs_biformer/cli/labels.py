"""The options of labels, the same in every command that reads them."""

import argparse
from typing import TYPE_CHECKING, Literal

from rs_biformer.errors import ConfigError

if TYPE_CHECKING:
    from rs_biformer.raster.labels import LabelOptions

READ_AS = ("colours", "palette", "values", "one-hot", "grey")
ORDERS = ("last", "first", "smallest", "schema")


def add_label_arguments(parser: argparse.ArgumentParser) -> None:
    """How labels are read where their files leave it open."""
    group = parser.add_argument_group("labels, where their files leave it open")
    add = group.add_argument
    add("--label-as", choices=READ_AS, help="how a raster spells classes (found out, and said where it is not plain)")
    add("--label-band", type=int, metavar="N", help="the band that holds the values")
    add(
        "--label-nodata",
        metavar="VALUE",
        help="a value that is no label; none: nodata and masks of labels do not count",
    )
    add(
        "--regrid-labels", action="store_true", help="take labels on other pixels or in another CRS (nearest neighbour)"
    )
    add(
        "--label-field",
        metavar="NAME",
        help="the attribute of polygons that holds the class (found where only one does)",
    )
    add("--label-layer", metavar="NAME", help="the layer of a file that has several")
    add("--label-crs", metavar="CRS", help="what coordinates of polygons are in, whatever the file says")
    add("--buffer-labels", type=float, metavar="METRES", help="how wide lines and points of a layer are (left out)")
    add("--label-order", choices=ORDERS, default="last", help="which of overlapping polygons counts (last in the file)")


def label_options(args: argparse.Namespace) -> "LabelOptions":
    """What `add_label_arguments` was given. Raises ConfigError for what cannot be meant."""
    from rs_biformer.raster.labels import LabelOptions

    return LabelOptions(
        read_as=args.label_as,
        band=args.label_band,
        nodata=_nodata(args.label_nodata),
        regrid=args.regrid_labels,
        field=args.label_field,
        layer=args.label_layer,
        crs=args.label_crs,
        width=args.buffer_labels,
        order=args.label_order,
    )


def _nodata(text: str | None) -> 'float | Literal["none"] | None':
    if text is None:
        return None
    if text == "none":
        return "none"
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--label-nodata is {text!r}; give a number, or none") from None
