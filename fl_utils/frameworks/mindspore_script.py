"""MindSpore Lite converts and runs networks from ONNX files, in an environment of its own (Python 3.7).

    python mindspore_script.py JOB.npz RESULT.npz

JOB holds ``names`` (text), and for each name ``<name>/file`` (an ONNX file's path) and ``<name>/images`` (float32
[N, C, H, W]). RESULT gets ``<name>/<bits>/outputs`` of every file that runs, and RESULT.json the version, the bytes of
every file, the first error of each that is refused, and the names in MindSpore Lite's interface that speak of training.
bits: 32, and for the first name also 16 (half floats) and 8 to 1 (weight quantization).
"""

import json
import sys
import tempfile
from pathlib import Path

import mindspore_lite
import numpy as np


def convert(source, target, bits):
    converter = mindspore_lite.Converter()
    converter.save_type = mindspore_lite.ModelType.MINDIR_LITE  # the phones' file; it takes images [N, H, W, C]
    converter.optimize = "none"
    converter.weight_fp16 = bits == 16
    if bits < 16:
        asked = {"quant_type": "WEIGHT_QUANT", "bit_num": str(bits)}
        asked.update(min_quant_weight_size="0", min_quant_weight_channel="1")
        converter.set_config_info("common_quant_param", asked)
    converter.convert(fmk_type=mindspore_lite.FmkType.ONNX, model_file=source, output_file=target)
    return target + ".ms"


def run(path, images):
    context = mindspore_lite.Context()
    context.append_device_info(mindspore_lite.CPUDeviceInfo()) if hasattr(context, "append_device_info") else None
    model = mindspore_lite.Model()
    model.build_from_file(path, mindspore_lite.ModelType.MINDIR_LITE, context)
    given, results = model.get_inputs()[0], []
    for image in images:
        given.set_data_from_numpy(np.ascontiguousarray(image.transpose(1, 2, 0))[None])
        results.append(model.predict([given])[0].get_data_to_numpy().copy())
    return np.concatenate(results)


def main(job_path, result_path):
    with np.load(job_path, allow_pickle=False) as file:
        job = dict(file.items())
    names, outputs, sizes, errors = job["names"].tolist(), {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            for bits in [32, 16, 8, 7, 6, 5, 4, 3, 2, 1] if name == names[0] else [32]:
                key = f"{name}/{bits}"
                try:
                    path = convert(str(job[name + "/file"]), str(Path(folder) / key.replace("/", "-")), bits)
                    sizes[key] = Path(path).stat().st_size
                    outputs[key + "/outputs"] = run(path, job[name + "/images"])
                except RuntimeError as error:
                    errors[key] = str(error)
    np.savez(result_path, **outputs)
    spoken = [name for name in dir(mindspore_lite) + dir(mindspore_lite.Model) if "train" in name.lower()]
    about = {"version": mindspore_lite.__version__, "sizes": sizes, "errors": errors, "training": spoken}
    Path(result_path).with_suffix(".json").write_text(json.dumps(about))


if __name__ == "__main__":
    main(*sys.argv[1:])
