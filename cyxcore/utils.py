"""Small things beside a model: what it costs, and what it is made of."""

from cyxcore import data as data
from cyxcore.overview import Summary as Summary
from cyxcore.overview import flops as flops
from cyxcore.overview import summary as summary
