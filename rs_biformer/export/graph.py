"""Which parts of an exported graph stay in float32 where the rest is made coarser."""

from collections import defaultdict, deque
from typing import Any

from rs_biformer.export.deployed import INPUT, OUTPUT

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that have weights, where both ends of a graph stop."""

NORMALISING = ("Add", "Cast", "Div", "Mul", "Pad", "Sub")
"""Operators that stand between raw values and the first layer."""

ROUTING = (
    *("Cast", "Div", "MatMul", "Mul", "Pad", "ReduceMean", "ReduceSum"),
    *("Reshape", "Squeeze", "Transpose", "Unsqueeze"),
)
"""Operators that make affinities of regions, as `bra.route` does, of queries and keys."""


def normalisation(graph: Any) -> set[str]:
    """Names of the nodes between the raw values and the first layer: raw values may not fit float16."""
    readers = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    waiting, found = list(readers[INPUT]), set()
    while waiting:
        node = waiting.pop()
        if node.op_type in NORMALISING and node.name not in found:
            found.add(node.name)
            waiting += [after for name in node.output for after in readers[name]]
    return found


def classification(graph: Any, head: bool) -> set[str]:
    """Names of the nodes between the last layer with weights and the probabilities; with `head` that layer too."""
    makers, found = _makers(graph), set()
    node = makers.get(OUTPUT)
    while node is not None and node.op_type not in WEIGHTED:
        found.add(node.name)
        node = makers.get(node.input[0])
    return found | {node.name} if head and node is not None else found


def routing(graph: Any) -> set[str]:
    """Names of the nodes that decide which regions are attended, from queries and keys on."""
    makers, constants = _makers(graph), {value.name for value in graph.initializer}
    found: set[str] = set()
    for node in graph.node:
        if node.op_type == "TopK":
            found |= {node.name} | _routing_before(node, makers, constants)
    return found


def _routing_before(node: Any, makers: dict[str, Any], constants: set[str]) -> set[str]:
    waiting, found = [node.input[0]], set()
    while waiting:
        maker = makers.get(waiting.pop())
        if maker is None or maker.op_type not in ROUTING or maker.name in found:
            continue
        if maker.op_type == "MatMul" and constants.intersection(maker.input):
            continue  # the projection to queries and keys
        found.add(maker.name)
        waiting += list(maker.input)
    return found


def _makers(graph: Any) -> dict[str, Any]:
    return {name: node for node in graph.node for name in node.output}


def kept(graph: Any, head: bool) -> list[str]:
    """Names of all nodes that stay in float32: the three sorts above, with the layer of the logits or without."""
    return sorted(normalisation(graph) | classification(graph, head) | routing(graph))


def keep_padding(graph: Any) -> None:
    """Put a maximum of one input, which is that input, between zeros at the rim and the pooling that looks at them.

    Where nothing stands between, onnxruntime (Pad_Fusion, seen in 1.31) hands the rim to the pooling, which takes
    the least of all numbers for it: windows of negative values at the rim come out otherwise. graph: of onnx_ir.
    """
    import onnx_ir

    for pool in [node for node in graph if node.op_type == "MaxPool"]:
        padded = pool.inputs[0]
        if padded is not None and (maker := padded.producer()) is not None and maker.op_type == "Pad":
            same = onnx_ir.node("Max", [padded], name=f"{pool.name}_of_zeros")
            same.outputs[0].type, same.outputs[0].shape = padded.type, padded.shape
            graph.insert_before(pool, same)
            pool.replace_input_with(0, same.outputs[0])


def join_casts(graph: Any) -> None:
    """Let nodes that stay in float32 hand values to each other as they are.

    onnxruntime's converter puts a cast to float16 behind each such node and one back before it, also at the input of
    the graph, where raw values may not fit, and makes the latter again for every reader.
    """
    nodes, seen = [], set()
    for node in graph.node:
        if node.name not in seen:
            nodes.append(node)
        seen.add(node.name)
    halved = {
        node.output[0]: node.input[0]
        for node in nodes
        if node.name.endswith("_cast_to_fp16_node") or node.name.startswith("graph_input_cast")
    }
    exact = {
        node.output[0]: halved[node.input[0]]
        for node in nodes
        if node.name.endswith("_cast_to_fp32_node") and node.input[0] in halved
    }
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = exact.get(name, name)
        if node.name.startswith("graph_output_cast"):
            node.input[0] = halved.get(node.input[0], node.input[0])
    read = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    kept_nodes = _ordered([node for node in nodes if read.intersection(node.output)])
    del graph.node[:]
    graph.node.extend(kept_nodes)


def _ordered(nodes: list[Any]) -> list[Any]:
    """The nodes, each behind those that make its inputs, as the format demands."""
    makers = {name: place for place, node in enumerate(nodes) for name in node.output}
    before = [{makers[name] for name in node.input if name in makers} for node in nodes]
    after = defaultdict(list)
    for place, needed in enumerate(before):
        for maker in needed:
            after[maker].append(place)
    missing = [len(needed) for needed in before]
    ready = deque(place for place, count in enumerate(missing) if not count)
    found = []
    while ready:
        place = ready.popleft()
        found.append(nodes[place])
        for reader in after[place]:
            missing[reader] -= 1
            if not missing[reader]:
                ready.append(reader)
    return found
