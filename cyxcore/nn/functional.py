"""cyxcore.functional where PyTorch has it: import cyxcore.nn.functional as F."""

from cyxcore.functional import *  # noqa: F403
