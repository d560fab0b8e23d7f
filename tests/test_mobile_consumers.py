"""The consumers in Swift and Kotlin: their syntax, and that they read what is written and say what the server takes.

Neither Apple's nor Android's tools are asked for: the sources are parsed by tree-sitter and compared with the Python
side. What they do on a phone is not tested here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from fl_utils import wire
from fl_utils.export.contract import Contract, Input, Output, digest
from fl_utils.on_device import listener

tree_sitter = pytest.importorskip("tree_sitter")
swift = pytest.importorskip("tree_sitter_swift")
kotlin = pytest.importorskip("tree_sitter_kotlin")

MOBILE = Path(__file__).resolve().parent.parent / "mobile"
IOS = MOBILE / "ios" / "Sources" / "FederatedModel"
ANDROID = MOBILE / "android" / "federated-model" / "src" / "main" / "kotlin" / "flnotebooks" / "mobile"
LANGUAGES = {".swift": swift, ".kt": kotlin, ".kts": kotlin}
SOURCES = sorted(file for file in MOBILE.rglob("*") if file.suffix in LANGUAGES and "build" not in file.parts)
FIELDS = re.compile(r"static let (\w+) = (\d+)")


def parsed(source: bytes, suffix: str):
    """The root of the syntax tree."""
    language = tree_sitter.Language(LANGUAGES[suffix].language())
    return tree_sitter.Parser(language).parse(source).root_node


def nodes(root) -> Iterator:
    """``root`` and everything below it, in the order of the text."""
    yield root
    for child in root.children:
        yield from nodes(child)


def faults(source: bytes, suffix: str) -> list[str]:
    """Where ``source`` is not of its language: line and kind."""
    wrong = [node for node in nodes(parsed(source, suffix)) if node.is_error or node.is_missing]
    return [f"line {node.start_point[0] + 1}: {'missing ' if node.is_missing else ''}{node.type}" for node in wrong]


def strings(file: Path) -> set[str]:
    """The text literals of a file, those without anything inserted."""
    kinds = {".swift": ("line_str_text",), ".kt": ("string_content",)}[file.suffix]
    return {node.text.decode() for node in nodes(parsed(file.read_bytes(), file.suffix)) if node.type in kinds}


def swift_keys(file: Path) -> dict[str, set[str]]:
    """Struct -> the JSON keys of its ``CodingKeys``."""
    found: dict[str, set[str]] = {}

    def visit(node, struct: str) -> None:
        if node.type == "class_declaration":
            name = node.child_by_field_name("name").text.decode()
            if name == "CodingKeys":
                text = node.text.decode()
                names = [each.strip() for line in re.findall(r"case (.+)", text) for each in line.split(",")]
                found[struct] = {name.partition(" = ")[2].strip('"') or name for name in names}
                return
            struct = name
        for child in node.children:
            visit(child, struct)

    visit(parsed(file.read_bytes(), ".swift"), "")
    return found


def kotlin_keys(file: Path) -> set[str]:
    """The keys that a file reads from JSON: the one text that is handed to a method of ``Reader``."""
    readers = r"\b\w+\.(?:text|whole|number|numbers|texts|sizes|part|has|getInt|getLong|getDouble|getString)"
    calls = [node.text.decode() for node in nodes(parsed(file.read_bytes(), ".kt")) if node.type == "call_expression"]
    found = {match[1] for call in calls if (match := re.fullmatch(readers + r'\("(\w+)"\)', call))}
    return found | set(re.findall(r'\btensors\("(\w+)"\)', file.read_text()))


@pytest.fixture(scope="module")
def contracts(tmp_path_factory) -> dict[str, dict]:
    """A contract of each kind as :mod:`fl_utils.export.contract` writes it, read as plain JSON."""
    from fl_utils.on_device import coreml, litert

    image = SimpleNamespace(name="image"), SimpleNamespace(name="probabilities_true")
    spec = SimpleNamespace(description=SimpleNamespace(trainingInput=image))
    training = {
        "coreml": {},
        "updatable": {"update": coreml._about(spec, (1, 4, 4), 8, 0.1, 2)},
        "litert": {},
        "trainable": litert._training([[2, 16], [2]], (8, 1, 4, 4), 2, 0.1, "model.state", b"\0" * 136),
    }
    written = {}
    for kind, how in training.items():
        folder = tmp_path_factory.mktemp(kind)
        (folder / "model.bin").write_bytes(b"a model")
        runtime, batch = ("coreml", 1) if kind in ("coreml", "updatable") else ("litert", 8)
        given = Input("image", (batch, 1, 4, 4), "float32", "NCHW", "GRAY", (1 / 255,), (0.0,), "caller")
        size, sha256 = digest(folder / "model.bin")
        contract = Contract(
            *("model", "1", runtime, "1", 32, "float", "model.bin", size, sha256, given),
            *(Output("logits", (batch, 2), "float32"), ("no", "yes"), how),
        )
        written[kind] = json.loads(contract.write(folder).path.read_text())
    return written


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(MOBILE).as_posix())
def test_every_source_is_of_its_language(file):
    assert faults(file.read_bytes(), file.suffix) == []


def test_both_consumers_are_there():
    assert {file.suffix for file in SOURCES} == set(LANGUAGES)
    assert len(list(IOS.glob("*.swift"))) > 5 and len(list(ANDROID.glob("*.kt"))) > 5


@pytest.mark.parametrize("file", [IOS / "Contract.swift", ANDROID / "Contract.kt"], ids=lambda file: file.name)
def test_a_damaged_source_is_found(file):
    source = file.read_bytes()
    brace = source.rindex(b"}")
    for damaged in (source[:brace] + source[brace + 1 :], source[: len(source) // 2], source.replace(b"(", b"", 1)):
        assert faults(damaged, file.suffix)


def test_swift_reads_every_key_that_is_written_and_no_other(contracts):
    read = swift_keys(IOS / "Contract.swift")
    written = contracts["updatable"]
    update = written["training"]["update"]
    assert read["Contract"] == set(written) == set(contracts["coreml"])
    assert read["ModelFile"] == set(written["model"])
    assert read["Input"] == set(written["input"])
    assert read["Output"] == set(written["output"])
    assert read["Training"] == set(written["training"])
    assert read["Update"] == set(update) - {"outputs"}  # Core ML's update has none: it gives another model
    assert update["outputs"] == {}
    assert read["Tensor"] == set(update["inputs"]["image"])
    assert read["Defaults"] == set(update["defaults"])


def test_kotlin_reads_every_key_that_is_written_and_no_other(contracts):
    written = contracts["trainable"]
    tensors = [
        each for name in ("train", "infer") for side in written["training"][name].values() for each in side.values()
    ]
    keys = {"inputs", "outputs"}.union(
        written, *(written[part] for part in ("model", "input", "output", "training")), *tensors
    )
    assert keys >= set(contracts["litert"])
    assert kotlin_keys(ANDROID / "Contract.kt") == keys
    assert set(written["training"]["state"]) == set(written["model"])  # both are read as one kind of file
    asked = {"labels", "learning_rate"}
    assert asked < strings(ANDROID / "DeviceModel.kt") and asked < set(written["training"]["train"]["inputs"])


def test_the_schema_takes_what_is_written_and_nothing_less(contracts):
    validator = pytest.importorskip("jsonschema").Draft202012Validator
    schema = json.loads((MOBILE / "contract.schema.json").read_text())
    validator.check_schema(schema)
    check = validator(schema)
    for written in contracts.values():
        assert list(check.iter_errors(written)) == []
        for place in (written, written["model"], written["input"], written["output"]):
            for key in list(place):
                value = place.pop(key)
                assert list(check.iter_errors(written)), f"the schema does not ask for {key}"
                place[key] = value
        assert list(check.iter_errors(written | {"contract": 2})) and list(check.iter_errors(written | {"more": 1}))


@pytest.mark.parametrize("folder, suffix", [(IOS, "swift"), (ANDROID, "kt")], ids=["swift", "kotlin"])
def test_the_clients_speak_as_the_server_does(folder, suffix):
    client, frame = folder / f"FederationClient.{suffix}", folder / f"Frame.{suffix}"
    for action in ("join", "work", "update", "failed"):
        assert listener.PATH.fullmatch(f"/{action}/3") and action in strings(client)
    assert {"Authorization", "POST"} <= strings(client)
    assert "Bearer " in client.read_text()
    assert wire.MAGIC.decode() in strings(frame)
    (prefix,) = re.findall(r"(?:prefix|PREFIX) = (\d+)", frame.read_text())
    assert int(prefix) == wire.PREFIX.size
    lengths, values = {"swift": ("bigEndian", "littleEndian"), "kt": ("BIG_ENDIAN", "LITTLE_ENDIAN")}[suffix]
    assert wire.PREFIX.format.startswith(">") and frame.read_text().count(lengths) >= 2  # writing and reading
    others = frame if suffix == "swift" else folder / "Bytes.kt"
    assert others.read_text().count(values) >= 2


def work() -> dict:
    """The header of a round's work, from the server itself."""
    import functools
    import threading

    import torch

    from fl_utils.cohorts import Client
    from fl_utils.federation import train_locally
    from fl_utils.on_device import server
    from fl_utils.training import LocalTraining

    class Asked(server.Server):
        def __init__(self):
            self._changed, self._over, self._patience, self.batch = threading.Condition(), False, 1.0, 8
            self._places = {0: server._Place("token", examples=4)}

    asked, local = Asked(), LocalTraining(1, 4, 0.1)

    def task(local, seed, number, train, vector, client):
        raise AssertionError("a client over HTTP trains by itself")

    client = Client(0, torch.zeros(4, 0), torch.zeros(4, dtype=torch.int64))
    asked.submit(functools.partial(task, local, 0, 1, train_locally), torch.zeros(3), client)
    return wire.parse(b"".join(bytes(part) for part in asked._places[0].frame))[0]


def test_the_clients_read_of_a_rounds_work_what_the_server_sends():
    sent = work()
    for read in (swift_keys(IOS / "Frame.swift")["Work"], kotlin_keys(ANDROID / "Frame.kt")):
        assert read == {"round", "state_sha256", "epochs", "batch_size", "learning_rate", "seed"} and read <= set(sent)


def test_the_clients_send_what_the_server_asks_for():
    update = {"kind", "round", "client", "num_examples", "state_sha256", "loss"}
    assert swift_keys(IOS / "Frame.swift")["Update"] == update
    assert swift_keys(IOS / "FederationClient.swift")["Join"] == {"examples", "model_sha256"}
    put = set(re.findall(r'\.put\("(\w+)"', (ANDROID / "FederationClient.kt").read_text()))
    assert put == update | {"examples", "model_sha256", "reason"}


def test_swift_knows_core_mls_field_numbers():
    from fl_utils.export import coreml

    try:
        coreml.tools()
    except ImportError:
        pytest.skip("coremltools is not installed")
    from coremltools.proto import Model_pb2, NeuralNetwork_pb2

    def number(message, field: str) -> int:
        return message.DESCRIPTOR.fields_by_name[field].number

    layer, convolution = NeuralNetwork_pb2.NeuralNetworkLayer, NeuralNetwork_pb2.ConvolutionLayerParams
    inner, weights = NeuralNetwork_pb2.InnerProductLayerParams, NeuralNetwork_pb2.WeightParams
    expected = {
        "modelNeuralNetwork": number(Model_pb2.Model, "neuralNetwork"),
        "networkLayers": number(NeuralNetwork_pb2.NeuralNetwork, "layers"),
        "layerName": number(layer, "name"),
        "layerIsUpdatable": number(layer, "isUpdatable"),
        "layerConvolution": number(layer, "convolution"),
        "layerInnerProduct": number(layer, "innerProduct"),
        "convolutionWeights": number(convolution, "weights"),
        "convolutionBias": number(convolution, "bias"),
        "innerProductWeights": number(inner, "weights"),
        "innerProductBias": number(inner, "bias"),
        "weightsFloatValue": number(weights, "floatValue"),
    }
    found = FIELDS.findall((IOS / "NetworkFile.swift").read_text())
    assert {name: int(value) for name, value in found} == expected


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(MOBILE).as_posix())
def test_no_source_holds_a_host_or_a_key(file):
    text = file.read_text()
    assert not re.findall(r"https?://[\w.]", text)
    assert not re.findall(r"\b\d{1,3}(?:\.\d{1,3}){3}\b", text)
    assert not re.findall(r"(?i)(?:password|secret|api_?key)\s*[:=]", text)
    assert not [literal for literal in re.findall(r'"([^"\n]*)"', text) if re.fullmatch(r"[\w+/=-]{32,}", literal)]
