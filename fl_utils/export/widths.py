"""Which widths of weights each runtime has, and by which modes it makes them; the first mode is the default.

float: weights of so many bits, no integers. dynamic: integer weights, activations measured at each run. weight_only:
integer weights, arithmetic in floats. static: integer weights and activations, measured once on calibration images.
linear: one step size per output channel. palette: a table of 2^bits values per tensor, palette_channel: per channel.
"""

from __future__ import annotations

FLOAT = {32: ("float",), 16: ("float",)}
TABLES = ("palette", "palette_channel")
MODES: dict[str, dict[int, tuple[str, ...]]] = {
    "coreml": FLOAT | {8: ("linear", *TABLES), 6: TABLES, 4: (*TABLES, "linear"), 3: TABLES, 2: TABLES, 1: TABLES},
    "litert": FLOAT | {8: ("dynamic", "weight_only"), 4: ("dynamic", "weight_only")},
    "executorch": FLOAT | {8: ("static",)},
    "onnx": FLOAT | {8: ("dynamic", "static")},
}


def choose(runtime: str, bits: int, mode: str = "") -> str:
    """The mode by which ``runtime`` makes weights of ``bits`` bits: ``mode`` if it has it, its default for "".

    Raises ValueError on a runtime that does not exist, and on a width or mode that it does not have, naming its own.
    """
    if runtime not in MODES:
        raise ValueError(f"runtime {runtime!r}: want one of {', '.join(MODES)}")
    widths = MODES[runtime]
    if type(bits) is not int or bits not in widths:
        raise ValueError(f"{runtime} has no weights of {bits!r} bits: it has {', '.join(map(str, widths))}")
    if mode and mode not in widths[bits]:
        raise ValueError(f"{runtime} has no mode {mode!r} at {bits} bits: it has {', '.join(widths[bits])}")
    return mode or widths[bits][0]
