"""How operations are lowered so that they are fast on this backend.

Each rule equals the operation's own value and gradient up to float32 rounding; only the order of
additions differs. `backends` says which backend takes which rule.
"""

from fvaudit.optvis.lowering.convolution import conv_general_dilated as conv_general_dilated
from fvaudit.optvis.lowering.convolution import observing as observing
from fvaudit.optvis.lowering.convolution import pointwise as pointwise
from fvaudit.optvis.lowering.convolution import stock_convolutions as stock_convolutions
from fvaudit.optvis.lowering.depthwise import depthwise as depthwise
from fvaudit.optvis.lowering.normalization import local_response_norm as local_response_norm
from fvaudit.optvis.lowering.pooling import max_pool as max_pool
from fvaudit.optvis.lowering.sampling import affine_sample as affine_sample
from fvaudit.optvis.lowering.strided import strided as strided
from fvaudit.optvis.lowering.winograd import winograd as winograd
