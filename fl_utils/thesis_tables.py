"""Tables 3.1 to 3.4 of Hofman 2020 read off built networks: the counterpart of every printed cell, by its metric.

Each function takes the :class:`fl_utils.costs.Costs` of a network and gives {metric: number}, the metrics being those
of papers/mobile/published.csv, so that a misprint is a difference between two numbers. A layer that covers its input in
one position (global pooling, fully connected, softmax) has no stride and no repetition: it is given 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from math import prod

from fl_utils.costs import Costs, Layer

Cells = dict[str, float]


def squeezenet(costs: Costs) -> Cells:
    """Table 3.1 from SqueezeNet 1.0: each layer's stride and input, each fire module's input and filters."""
    cells: Cells = {}
    kinds = {"Conv2d": "conv", "MaxPool2d": "maxpool", "AdaptiveAvgPool2d": "avg_pool"}
    rows = costs.kinds(*kinds)
    for number, (_, group) in enumerate(groupby(rows, lambda row: row.name.split(".")[:2]), 1):
        first, *expand = group
        row = f"table_3_1/{number:02}_{'fire' if expand else kinds[first.kind]}"
        cells |= _shape(row, "input", first.input_shape)
        if expand:
            filters = (first, *expand)
            names = (f"{part}_{kernel}x{kernel}" for part, kernel in (("s", 1), ("e", 1), ("e", 3)))
            cells |= {f"{row}/{name}": layer.output_shape[0] for name, layer in zip(names, filters, strict=True)}
        else:
            cells[f"{row}/stride"] = first.stride or 1
    return cells


def mobilenet_v1(costs: Costs) -> Cells:
    """Table 3.2 from MobileNetV1: stride, filter and input of each layer; equal pairs once, with their count."""
    cells: Cells = {}
    first, *others = costs.kinds("Conv2d")
    (pool,), (last,) = costs.kinds("AdaptiveAvgPool2d"), costs.kinds("Linear")
    rows: list[tuple[Layer, int]] = [(first, 1)]
    pairs = list(zip(others[::2], others[1::2], strict=True))
    for _, group in groupby(pairs, lambda pair: [(row.stride, row.input_shape, row.output_shape) for row in pair]):
        equal = list(group)
        rows += [(layer, len(equal)) for layer in equal[0]]
    for number, (layer, repeat) in enumerate(rows, 1):
        depthwise = layer.parameters == prod(layer.kernel) * layer.output_shape[0]
        row = f"table_3_2/{number:02}_conv{'_dw' * depthwise}"
        cells |= {f"{row}/stride": layer.stride, f"{row}/filter_input_channels": layer.input_shape[0]}
        cells |= {f"{row}/filter_height": layer.kernel[0], f"{row}/filter_width": layer.kernel[1]}
        cells |= _shape(row, "input", layer.input_shape)
        if not depthwise:
            cells[f"{row}/filter_output_channels"] = layer.output_shape[0]
        if repeat > 1:
            cells[f"{row}/repeat"] = repeat
    number = len(rows)
    row = f"table_3_2/{number + 1:02}_avg_pool"
    cells |= {
        f"{row}/stride": 1,
        f"{row}/filter_height": pool.input_shape[1],
        f"{row}/filter_width": pool.input_shape[2],
    }
    cells |= _shape(row, "input", pool.input_shape)
    row = f"table_3_2/{number + 2:02}_fc"
    (inputs,), (outputs,) = last.input_shape, last.output_shape
    cells |= {f"{row}/stride": 1, f"{row}/filter_input_channels": inputs, f"{row}/filter_output_channels": outputs}
    cells |= _shape(row, "input", (inputs, 1, 1))
    row = f"table_3_2/{number + 3:02}_softmax"
    return cells | {f"{row}/stride": 1} | _shape(row, "input", (outputs, 1, 1))


def mobilenet_v2(costs: Costs) -> Cells:
    """Table 3.3 from MobileNetV2: stride, repetition and input of each stage of equal blocks."""
    blocks = [list(group) for _, group in groupby(costs.kinds("Conv2d"), lambda row: row.name.split(".")[1])]
    stages = [list(group) for _, group in groupby(blocks, lambda block: (len(block) > 1, block[-1].output_shape[0]))]
    rows = []
    for stage in stages:
        first = stage[0]
        kind = "bottleneck" if len(first) > 1 else "conv"
        rows.append((kind, prod(layer.stride for layer in first), len(stage), first[0].input_shape))
    pooled = blocks[-1][-1].output_shape
    rows += [("avg_pool", 1, 1, pooled), ("conv", 1, 1, (pooled[0], 1, 1))]
    cells: Cells = {}
    for number, (kind, stride, repeat, shape) in enumerate(rows, 1):
        row = f"table_3_3/{number:02}_{kind}"
        cells |= {f"{row}/stride": stride, f"{row}/n": repeat} | _shape(row, "input", shape)
    return cells


def shufflenet_v1(by_groups: Mapping[int, Costs]) -> Cells:
    """Table 3.4 from ShuffleNets of several groups: stride, output and count of the units, channels, complexity.

    The complexity is that of multiply-adds, in millions. Raises ValueError where the networks differ in more than
    their channels.
    """
    cells: Cells = {}
    for groups, costs in by_groups.items():
        for number, (kind, stride, output, repeat) in enumerate(_shufflenet_rows(costs), 1):
            row = f"table_3_4/{number:02}_{kind}"
            found: Cells = {f"{row}/stride": stride, f"{row}/n": repeat}
            found |= {f"{row}/output_height": output[1], f"{row}/output_width": output[2]}
            if changed := [name for name, value in found.items() if cells.setdefault(name, value) != value]:
                raise ValueError(f"{changed[0]} is not the same for {groups} groups: want networks of one design")
            cells[f"{row}/g_{groups}"] = output[0]
        cells[f"table_3_4/11_complexity/g_{groups}"] = costs.multiply_adds / 1e6
    return cells


def _shufflenet_rows(costs: Costs) -> list[tuple[str, int, tuple[int, ...], int]]:
    """Type, stride, output shape and repetition of each printed row."""
    (last,) = costs.kinds("Linear")
    (pool,) = costs.kinds("MaxPool2d")
    first, *convolutions = costs.kinds("Conv2d")
    units = [list(group) for _, group in groupby(convolutions, lambda row: row.name.split(".")[:2])]
    channels = [following[0].input_shape[0] for _, following in pairwise(units)] + [last.input_shape[0]]
    shapes = [(unit[1].stride, (made, *unit[-1].output_shape[1:])) for unit, made in zip(units, channels, strict=True)]
    rows = [("conv", first.stride, first.output_shape, 1), ("maxpool", pool.stride, pool.output_shape, 1)]
    rows += [("shufflenet_unit", *shape, len(list(equal))) for shape, equal in groupby(shapes)]
    return [*rows, ("globalpool", 1, (last.input_shape[0], 1, 1), 1), ("fc", 1, (last.output_shape[0], 1, 1), 1)]


def printed(cells: Mapping[str, float], metrics: Sequence[str]) -> Cells:
    """Those of ``cells`` that the thesis prints. Raises ValueError where one of ``metrics`` has no counterpart."""
    if missing := [metric for metric in metrics if metric not in cells]:
        raise ValueError(f"no counterpart of {missing[0]} and {len(missing) - 1} more was read off the network")
    return {metric: cells[metric] for metric in metrics}


def _shape(row: str, side: str, shape: Sequence[int]) -> Cells:
    channels, height, width = shape
    return {f"{row}/{side}_height": height, f"{row}/{side}_width": width, f"{row}/{side}_channels": channels}
