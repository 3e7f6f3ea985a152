"""Convolutions whose gradients are convolutions, rewritten into ones XLA runs fast."""

from jaxconv import checkpoint_policies as checkpoint_policies
from jaxconv import lax as lax
from jaxconv import testing as testing
from jaxconv.explanation import explain as explain
from jaxconv.functional import conv as conv
from jaxconv.functional import conv_forward as conv_forward
from jaxconv.functional import conv_input_grad as conv_input_grad
from jaxconv.functional import conv_kernel_grad as conv_kernel_grad
from jaxconv.functional import conv_transpose as conv_transpose
from jaxconv.functional import conv_transpose_forward as conv_transpose_forward
from jaxconv.functional import conv_transpose_vjp as conv_transpose_vjp
from jaxconv.functional import conv_vjp as conv_vjp
from jaxconv.lax import conv_general_dilated as conv_general_dilated
from jaxconv.layer import ConvOptions as ConvOptions
from jaxconv.layer import ConvTransposeOptions as ConvTransposeOptions
from jaxconv.norms import conv_kernel_grad_sq_norms as conv_kernel_grad_sq_norms
from jaxconv.params import ConvParams as ConvParams
from jaxconv.params import init_conv_params as init_conv_params
from jaxconv.transform import accelerate as accelerate
from jaxconv.unfold import fold as fold

__version__ = "0.1.0"
