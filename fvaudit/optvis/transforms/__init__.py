"""Random transforms that a good visualization must survive.

A transform maps (key, image) to an image; each image of a batch has its own key. Its size may
change inside a composition, for example pad(12) > jitter(8) > crop_or_pad(128, 128).

    geometry      jitter, scale, rotate, flip: maps of coordinates, for `compose`
    canvas        pad, crop_or_pad, random_crop
    appearance    blur, noise, colour_jitter, collapse_alpha
    composition   compose, and the sets: standard (lucid), maco_crops, none
"""

from fvaudit.optvis.transforms.appearance import blur as blur
from fvaudit.optvis.transforms.appearance import collapse_alpha as collapse_alpha
from fvaudit.optvis.transforms.appearance import colour_jitter as colour_jitter
from fvaudit.optvis.transforms.appearance import noise as noise
from fvaudit.optvis.transforms.canvas import crop_or_pad as crop_or_pad
from fvaudit.optvis.transforms.canvas import pad as pad
from fvaudit.optvis.transforms.canvas import random_crop as random_crop
from fvaudit.optvis.transforms.composition import compose as compose
from fvaudit.optvis.transforms.composition import maco_crops as maco_crops
from fvaudit.optvis.transforms.composition import none as none
from fvaudit.optvis.transforms.composition import standard as standard
from fvaudit.optvis.transforms.geometry import flip as flip
from fvaudit.optvis.transforms.geometry import jitter as jitter
from fvaudit.optvis.transforms.geometry import rotate as rotate
from fvaudit.optvis.transforms.geometry import scale as scale
from fvaudit.optvis.transforms.records import Affine as Affine
from fvaudit.optvis.transforms.records import Geometric as Geometric
from fvaudit.optvis.transforms.records import Image as Image
from fvaudit.optvis.transforms.records import Transform as Transform
