"""Everything that is ever said on a Cyx network, one Struct each: a module for each family, and all of them here.

Requests and replies are JSON (or MessagePack by Content-Type); events and telemetry are MessagePack.
A field is never renamed or retyped; new fields have defaults; tests/golden/ pins the bytes.
Money is an integer in base units (10**-9 CYX). Times are Unix milliseconds. Digests are SHA-256 in hex.
gc=False: a message is a tree, so the collector of cycles need not look at the many that central keeps.
"""

from cyxnet.messages.access import *
from cyxnet.messages.artifacts import *
from cyxnet.messages.asking import *
from cyxnet.messages.commands import *
from cyxnet.messages.deployments import *
from cyxnet.messages.events import *
from cyxnet.messages.fields import *
from cyxnet.messages.jobs import *
from cyxnet.messages.money import *
from cyxnet.messages.reports import *
from cyxnet.messages.standing import *
