"""ONNX: a model from or to an .onnx file, and ONNX graphs run on our own tensors.

    model = cx.onnx.load("net.onnx")      # OnnxModel: runs any supported graph, op by op
    y, = model.run({"x": x})
    cx.load_model("net.onnx")             # a Model of one input and one output, as a graph of ours
    cx.onnx.save("net.onnx", graph, weights)

Nothing here needs the onnx package. docs/onnx.md lists the operators.
"""

from cyxcore.onnx.exporting import save, to_bytes
from cyxcore.onnx.importing import OnnxModel, load, load_bytes, to_graph
from cyxcore.onnx.table import OPERATORS
from cyxcore.torchpaths import below

__all__ = ["OPERATORS", "OnnxModel", "load", "load_bytes", "save", "to_bytes", "to_graph"]

__getattr__ = below("onnx")
