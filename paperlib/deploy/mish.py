"""Mish in ONNX files as a rational function of one exponential, which runtimes compute faster than its definition."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from paperlib.extras import load_later

if TYPE_CHECKING:
    import onnx
    from onnx import inliner, parser
else:
    onnx = load_later("runtimes", lambda: import_module("onnx"))
    inliner = load_later("runtimes", lambda: import_module("onnx.inliner"))
    parser = load_later("runtimes", lambda: import_module("onnx.parser"))

OPERATOR = "Mish"
DOMAIN = "paperlib"
PREFIX = "rational_mish_"
"""Begins the names of the nodes that compute Mish, which stay in float32 when a file is quantised."""
# x tanh(log(1 + e)) = x n / (n + 2) with e = exp(x) and n = e (e + 2). Beyond 20 the quotient is 1 in float32, and the
# bound keeps e * e finite.
FUNCTION = f"""
<domain: "{DOMAIN}", opset_import: ["": 18]>
{OPERATOR} (x) => (y) {{
  [{PREFIX}limit] limit = Constant <value_float: float = 20.0> ()
  [{PREFIX}two] two = Constant <value_float: float = 2.0> ()
  [{PREFIX}bound] bounded = Min (x, limit)
  [{PREFIX}exp] e = Exp (bounded)
  [{PREFIX}sum] sum = Add (e, two)
  [{PREFIX}numerator] n = Mul (e, sum)
  [{PREFIX}denominator] d = Add (n, two)
  [{PREFIX}quotient] quotient = Div (n, d)
  [{PREFIX}product] y = Mul (x, quotient)
}}
"""


def expand_mish(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with every Mish node, which runtimes compute as Softplus, Tanh and Mul, as a rational function.

    Args:
        model: may be changed.
    """
    nodes = [node for node in model.graph.node if node.op_type == OPERATOR and not node.domain]
    if not nodes:
        return model
    for node in nodes:
        node.domain = DOMAIN
    model.functions.append(parser.parse_function(FUNCTION))
    model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    expanded = inliner.inline_local_functions(model)
    standard = [opset for opset in expanded.opset_import if opset.domain != DOMAIN]
    del expanded.opset_import[:]
    expanded.opset_import.extend(standard)
    return expanded
