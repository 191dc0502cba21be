"""Natural images: folders, class folders, zips, .npz, packaged samples -> `ImageSet`.

load.py      the one entry point: sources, labels, crops, pixels
naming.py    what folders and labels may call a class
npz.py       arrays of a .npz, checked before they are read
decode.py    one file's bytes -> an RGB picture, or the reason why not
sources.py   where files come from
samples.py   photographs that ship inside Python packages
"""

from fvaudit.data.load import load_images as load_images
