"""What is left out of conversions: nothing that changes a file, and not where it is needed."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fl_utils.export import executorch, export, lean, run_exported

IMPORTS = """
import sys
import torch
from fl_utils.export import lean
with lean.imports():
    import litert_torch
    from executorch.exir import to_edge_transform_and_lower
    from executorch.exir.dialects.edge import _ops
left = [name for name in ("torch._inductor.lowering", lean.TORCHAO, lean.POST_GRAD) if name in sys.modules]
print(left, len(_ops._edge_dialect_info) > 100, _ops._edge_dialect_info == _ops._load_edge_dialect_info())
"""


def test_imports_without_the_compiler_and_with_the_same_table():
    command = [sys.executable, "-W", "ignore", "-c", IMPORTS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-2] == "[] True True"


def test_a_stand_in_is_there_inside_alone_and_gives_way_to_the_module(monkeypatch):
    name = "wsgiref.headers"  # any module that nothing here imports
    monkeypatch.delitem(sys.modules, name, raising=False)
    with lean._stand_in(name, Headers=3):
        from wsgiref.headers import Headers

        assert Headers == 3
    assert name not in sys.modules
    with lean._stand_in(name, Headers=3):
        from wsgiref.headers import tspecials

        assert sys.modules[name].Headers is not Headers and tspecials.pattern
    with lean._stand_in(name, Headers=3):
        assert sys.modules[name].Headers != 3


def test_an_operator_left_by_functionalization_is_undone_by_torch(monkeypatch):
    seen = []
    monkeypatch.setitem(sys.modules, lean.POST_GRAD, SimpleNamespace(decompose_auto_functionalized=seen.append))
    plain, left = torch.fx.Graph(), torch.fx.Graph()
    for graph, target in ((plain, torch.relu), (left, torch.ops.higher_order.auto_functionalized)):
        graph.call_function(target, (graph.placeholder("x"),))
        lean._undone(graph)
    assert seen == [left]


def test_the_collector_pauses_and_goes_on():
    with pytest.raises(KeyError), lean.paused_collector():
        with lean.paused_collector():
            assert not gc.isenabled()
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()


def test_operators_are_listed_once_for_as_many_libraries(monkeypatch):
    from torch._export import utils

    listed = []
    monkeypatch.setattr(utils, "_materialize_cpp_cia_ops", lambda: listed.append(len(torch.ops._dir)))
    with lean.conversion():
        utils._materialize_cpp_cia_ops()
        utils._materialize_cpp_cia_ops()
        assert len(listed) == 1
        monkeypatch.setattr(torch.ops, "_dir", [*torch.ops._dir, "another"])
        utils._materialize_cpp_cia_ops()
    assert len(listed) == 2
    utils._materialize_cpp_cia_ops()
    assert len(listed) == 3


def test_the_file_is_the_same_with_every_pattern_looked_for(tiny, tmp_path, monkeypatch):
    lean_file = tiny.export("executorch", tmp_path / "lean")
    monkeypatch.setattr(executorch, "_patterns_that_may_fit", lambda program: contextlib.nullcontext())
    assert tiny.export("executorch", tmp_path / "full").model_path.read_bytes() == lean_file.model_path.read_bytes()


def test_upsampling_and_attention_are_looked_for_where_they_may_be(tmp_path, monkeypatch):
    from executorch.backends.xnnpack.partition.graphs import bilinear_2d, sdpa

    looked = []
    for module, name in ((bilinear_2d, "get_graphs_dict"), (sdpa, "get_graphs")):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda name=name, original=original: (looked.append(name), original())[1])

    class Attention(nn.Module):
        def forward(self, image):
            made = nn.functional.scaled_dot_product_attention(image, image, image)
            return made.mean((2, 3))

    class Larger(nn.Module):
        def forward(self, image):
            return nn.functional.interpolate(image, scale_factor=2, mode="bilinear").mean((2, 3))

    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    for network, expected in ((Larger(), "get_graphs_dict"), (Attention(), "get_graphs")):
        looked.clear()
        contract = export(network, (1, 3, 4, 4), "abc", "executorch", tmp_path, name="network")
        wanted = network(torch.from_numpy(images).permute(0, 3, 1, 2) / 255).numpy()
        np.testing.assert_allclose(run_exported(contract, images), wanted, atol=1e-5)
        assert set(looked) == {expected}


def test_a_program_is_checked_once_a_pipeline_and_comes_out_the_same(tiny, tmp_path, monkeypatch):
    from fl_utils.export import coreml

    coreml.tools()
    from coremltools.converters.mil.mil import Program
    from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipelineManager

    checks, check, apply = [], Program.validate, PassPipelineManager.apply_pipeline
    monkeypatch.setattr(Program, "validate", lambda self, **named: (checks.append(1), check(self, **named))[1])

    def made(name):
        checks.clear()
        package = tiny.export("coreml", tmp_path / name, bits=8).model_path
        return len(checks), {
            path.name: path.read_bytes() for path in package.rglob("*") if path.suffix in (".bin", ".mlmodel")
        }

    few, lean_files = made("lean")
    assert PassPipelineManager.apply_pipeline is apply
    monkeypatch.setattr(lean, "programs_checked_once", contextlib.nullcontext)
    many, files = made("full")
    assert 5 < few < many / 5 and files == lean_files and sum(map(len, files.values())) > 1000


def test_a_fault_of_a_pass_is_found_at_the_pipelines_end():
    from fl_utils.export import coreml

    coreml.tools()
    from coremltools.converters.mil.mil import Program
    from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipeline, PassPipelineManager

    class Faulty(Program):
        def validate(self, **_):
            raise ValueError("a variable is consumed by nobody")

    with lean.programs_checked_once(), pytest.raises(ValueError, match="consumed by nobody"):
        PassPipelineManager.apply_pipeline(Faulty(), PassPipeline(["common::noop_elimination"]))
