"""Synthetic aerial scenes in the manner of ISPRS Vaihingen: near infrared, red and green, with colour-coded labels.

A scene is a window on an endless town that follows from a seed alone. Streets, houses, trees and cars are planned block
by block in metres, each block from its own random numbers, and drawn into whichever pixels are asked for; textures come
from hashed lattices. So a scene of any size is written in pieces of bounded memory, and a pixel does not depend on the
piece it was drawn in.

`plots` decides what stands in a block, `town` lays out the blocks, and `drawing` paints them on a canvas that keeps,
per pixel, the height above ground and the surface seen from above (the higher one wins), then turns surfaces into
grey values: textures, sunlight by the slope, shadows cast along the height field, haze, blur and noise.

Colour alone does not tell the classes apart, on purpose: grey roofs have the colour of asphalt, paved courts that of
tiles, green roofs and lawns that of crowns, and everything lies in the shadow of something.
"""

from rs_biformer.synthetic.drawing import render
from rs_biformer.synthetic.scenes import make_scene
from rs_biformer.synthetic.things import SCHEMA
from rs_biformer.synthetic.town import Town

__all__ = ["SCHEMA", "Town", "make_scene", "render"]
