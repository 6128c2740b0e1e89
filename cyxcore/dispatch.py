"""Functions whose calls go straight to the kernels once they are known (kernels/functions.pxi).

A function in PURE depends on nothing but the kinds of its arguments, numbers and names among them: not on what may be
set elsewhere, nor on random numbers. What looks at elements may be here; its calls stay what they are.
"""

import functools
from collections.abc import Callable
from typing import Any

from cyxcore.held import Dispatched

PURE = frozenset(
    (
        "abs absolute acos acosh add addbmm addcdiv addcmul addmm addmv addr adjoint all amax amin aminmax angle any "
        "arccos arccosh arcsin arcsinh arctan arctan2 arctanh argmax argmin argsort asin asinh atan atan2 atanh "
        "atleast_1d atleast_2d atleast_3d avg_pool1d avg_pool2d avg_pool3d baddbmm binary_cross_entropy "
        "binary_cross_entropy_with_logits bitwise_and bitwise_invert bitwise_left_shift bitwise_not bitwise_or "
        "bitwise_right_shift bitwise_xor bmm broadcast_tensors broadcast_to cat cdist ceil celu chunk clamp clamp_max "
        "clamp_min clip clone column_stack concat concatenate conj conv1d conv2d conv3d conv_transpose1d "
        "conv_transpose2d conv_transpose3d copysign cos cosh cosine_similarity count_nonzero cross cross_entropy "
        "cummax cummin cumprod cumsum cumulative_prod cumulative_sum deg2rad diag diag_embed diagonal diff dist div "
        "divide dot dstack elu embedding eq equal erf erfc erfinv exp exp2 expand expand_as expand_dims expm1 flatten "
        "flip fliplr flipud float_power floor floor_divide fmax fmin fmod frac gather ge gelu glu greater "
        "greater_equal group_norm gt hardshrink hardsigmoid hardswish hardtanh heaviside hinge_embedding_loss hstack "
        "huber_loss hypot index_select isclose isfinite isinf isnan kl_div kron l1_loss layer_norm le leaky_relu lerp "
        "less less_equal lgamma linear log log10 log1p log2 log_softmax logaddexp logaddexp2 logical_and logical_not "
        "logical_or logical_xor logit logsigmoid logsumexp lt margin_ranking_loss masked_fill matmul matrix_transpose "
        "max max_pool1d max_pool2d max_pool3d maximum mean min minimum mish mm moveaxis movedim mse_loss mul multiply "
        "mv nan_to_num narrow ne neg negative nll_loss norm normalize not_equal one_hot outer pad permute "
        "permute_dims pixel_shuffle pixel_unshuffle poisson_nll_loss positive pow prelu prod rad2deg ravel reciprocal "
        "relu relu6 remainder repeat repeat_interleave reshape rms_norm roll round row_stack rsqrt scatter select "
        "selu sigmoid sign signbit silu sin sinh smooth_l1_loss soft_margin_loss softmax softmin softplus softshrink "
        "softsign sort split sqrt square squeeze stack std sub subtract sum swapaxes swapdims t take take_along_dim "
        "tan tanh tanhshrink tile topk transpose tril triu true_divide trunc unbind unflatten unsqueeze unstack var "
        "vecdot view view_as vstack where xlogy"
    ).split()
)

SHORT = frozenset("abs cos exp log relu sigmoid sin sqrt square tanh".split())  # methods that are in C as they are


def dispatched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose calls are known from the third or fourth of a kind on, if it is in PURE."""
    if name not in PURE or Dispatched is None:
        return function
    made: Callable[..., Any] = functools.update_wrapper(Dispatched(function), function)
    return made
