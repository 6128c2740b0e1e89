"""The error of a node that cannot do its work."""

from cyxcore.errors import CyxError


class NodeError(CyxError):
    """This machine or its folder stands in the way. The message says what, where and what to do."""

    code = "node_failed"


class DiskError(NodeError):
    """The disk of this node did not take or give something: it says nothing of the job."""

    code = "disk_error"
