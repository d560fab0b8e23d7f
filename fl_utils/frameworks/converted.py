"""The four runtimes of :mod:`fl_utils.export`: converted, run, compared; then their weights in fewer bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fl_utils import paths
from fl_utils.export import Contract, export, lean, run_exported
from fl_utils.export.contract import digest
from fl_utils.export.quiet import silenced
from fl_utils.frameworks.trial import CLASSES, CNN, REFUSALS, Cell, Trial, attempt, first_line

PACKAGES = {
    "coreml": ("coremltools",),
    "litert": ("litert_torch", "ai_edge_litert", "ai_edge_quantizer"),
    "executorch": ("executorch", "torchao"),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
}
LABELS = [str(label) for label in range(CLASSES)]


def inference(runtime: str, trial: Trial) -> Cell:
    """Both networks converted in float, run on every image by the runtime, and compared with torch."""

    def probe() -> Cell:
        contracts = {name: exported(runtime, name, trial) for name in trial.networks}
        outputs = {name: run_exported(made, trial.pixels[name]) for name, made in contracts.items()}
        return trial.inferred_cell(outputs)

    return attempt(probe, *PACKAGES[runtime])


def exported(runtime: str, name: str, trial: Trial, bits: int = 32, mode: str = "") -> Contract:
    """A network's file for one image at a time, made once."""
    key = runtime, name, bits, mode
    if key in trial.made:
        return trial.made[key]
    height, width, channels = trial.pixels[name].shape[1:]
    calibration = trial.pixels[name] if mode == "static" else None
    trial.made[key] = export(
        trial.networks[name],
        (1, channels, height, width),
        LABELS,
        runtime,
        trial.folder / "converted",
        bits,
        f"{name}-{bits}{mode}",
        mode=mode,
        calibration=calibration,
    )
    return trial.made[key]


def quantization(runtime: str, trial: Trial) -> Cell:
    """The CNN's weights in 16 bits and fewer: how long the file becomes, and how near its outputs stay."""

    def probe() -> Cell:
        plain = exported(runtime, CNN, trial)
        found: dict[int, tuple[int, float | None]] = {32: (plain.bytes, 1.0)}
        refused = ""
        for bits in (16, *range(8, 0, -1)):
            try:
                made = _narrowed(runtime, plain, bits, trial)
            except REFUSALS as error:
                refused = refused or f"{bits} bits: {first_line(error)}"
                continue
            outputs = run_exported(made, trial.pixels[CNN])
            found[bits] = made.bytes, trial.correlation(CNN, outputs)
        return trial.widths_cell(found, refused)

    return attempt(probe, *PACKAGES[runtime])


def _narrowed(runtime: str, plain: Contract, bits: int, trial: Trial) -> Contract:
    """The CNN's file in ``bits`` bits: from the float file where the runtime's tools take that, or exported anew."""
    if runtime == "litert":
        return _litert(plain, bits)
    if runtime == "coreml" and bits < 16 and bits != 3:  # 3 bits are for iOS 18, which a conversion is asked for
        return _coreml(plain, bits, "linear_symmetric" if bits == 8 else "kmeans", trial)
    return exported(runtime, CNN, trial, bits, "static" if (runtime, bits) == ("executorch", 8) else "")


def _litert(plain: Contract, bits: int) -> Contract:
    from ai_edge_quantizer import recipe

    from fl_utils.export import litert

    mode = "float" if bits == 16 else "dynamic"
    if mode == "dynamic" and not hasattr(recipe, f"dynamic_wi{bits}_afp32"):
        raise ValueError(f"ai-edge-quantizer has no recipe for weights of {bits} bits")
    with silenced():
        data = litert.quantized(plain.model_path, bits, mode)
    path = paths.write_whole(plain.model_path.with_name(f"cnn-{bits}.tflite"), data)
    return _contract(plain, path, bits, mode)


def _coreml(plain: Contract, bits: int, mode: str, trial: Trial) -> Contract:
    """By coremltools, once. mode: linear, linear_symmetric (one step size per channel), kmeans (a table per tensor)."""
    from fl_utils.export.coreml import tools

    if (key := ("coreml", bits, mode)) in trial.made:
        return trial.made[key]
    optimize = tools().optimize.coreml
    with silenced(), lean.paused_collector():
        model = tools().models.MLModel(str(plain.model_path), skip_model_load=True)
        if mode == "kmeans":
            config = optimize.OpPalettizerConfig(mode=mode, nbits=bits, weight_threshold=0)
            model = optimize.palettize_weights(model, optimize.OptimizationConfig(config))
        else:
            config = optimize.OpLinearQuantizerConfig(mode=mode, dtype=f"int{bits}", weight_threshold=0)
            model = optimize.linear_quantize_weights(model, optimize.OptimizationConfig(config))
        path = plain.model_path.with_name(f"cnn-{bits}{mode}.mlpackage")
        model.save(str(path))
    trial.made[key] = _contract(plain, path, bits, mode)
    return trial.made[key]


def coreml_modes(trial: Trial) -> dict[str, float]:
    """Core ML's modes of section 5.5 at 8 and 4 bits: mode -> correlation of the outputs with torch's."""
    plain = exported("coreml", CNN, trial)
    widths = {"linear": 8, "linear_symmetric": 8, "kmeans": 4}
    made = {mode: _coreml(plain, bits, mode, trial) for mode, bits in widths.items()}
    return {mode: trial.correlation(CNN, run_exported(contract, trial.pixels[CNN])) for mode, contract in made.items()}


def _contract(plain: Contract, path: Path, bits: int, mode: str) -> Contract:
    size, sha256 = digest(path)
    made = replace(plain, name=path.stem, bits=bits, mode=mode, file=path.name, bytes=size, sha256=sha256)
    return made.write(path.parent)
