import json
import subprocess
import sys

import pytest
import torch

from fl_utils import papers
from fl_utils.experiment import MIME, Experiment, peak_mb


def shown(monkeypatch) -> list[dict]:
    import IPython.display

    outputs = []
    monkeypatch.setattr(IPython.display, "display", lambda bundle, raw: outputs.append(bundle))
    return outputs


def test_a_value_stands_beside_its_published_one():
    experiment = Experiment("O2", seed=0)
    mean = experiment.value("accuracy/fedavg/combined", [84.0, 86.0, 88.0])
    experiment.value("accuracy/fedavg/imdb", 85.1)
    (first, second) = experiment.as_record()["values"]
    assert mean == first["value"] == 86.0
    assert (first["published"], first["unit"], first["where"]) == ("86.0", "%", "Table 3b")
    assert (first["gap"], first["spread"], first["seeds"]) == (0.0, 2.0, 3)
    assert (second["gap"], second["spread"], second["seeds"]) == (pytest.approx(0), None, 1)


def test_a_published_text_has_no_gap():
    experiment = Experiment("O7", seed=0)
    metric = next(row.metric for row in papers.published("O7").values() if row.value == "N/A")
    experiment.value(metric, 0.7)
    assert experiment.as_record()["values"][0]["gap"] is None


def test_a_mistyped_metric_or_unit_is_an_error_and_not_a_lonely_number():
    experiment = Experiment("O2", seed=0)
    with pytest.raises(ValueError, match=r"publishes no 'accuracy/fedavg/combine' \(near: accuracy/fedavg/combined"):
        experiment.value("accuracy/fedavg/combine", 80.0)
    with pytest.raises(ValueError, match="published in '%', not in '1'"):
        experiment.value("accuracy/fedavg/combined", 0.8, unit="1")
    for wrong in ([], float("nan"), [1.0, float("inf")]):
        with pytest.raises(ValueError, match="all finite"):
            experiment.value("accuracy/fedavg/combined", wrong)
    experiment.value("something/of/ours", 3, unit="MB")
    assert experiment.as_record()["values"][0]["published"] is None


def test_claims_are_decided_once_each_with_evidence(capsys):
    experiment = Experiment("O2", seed=0)
    with pytest.raises(ValueError, match=r"'O2.9': papers/oarf/claims.yaml has O2.1, O2.2, O2.3"):
        experiment.claim("O2.9", True, "1 against 2")
    with pytest.raises(ValueError, match="evidence"):
        experiment.claim("O2.1", True, " ")
    experiment.claim("O2.1", True, "80 % against 70 %")
    with pytest.raises(ValueError, match=r"O2.2 is not decided"):
        experiment.verdicts()
    experiment.undecided("O2.2", "one training of the two was asked for")
    assert experiment.as_record()["claims"][1]["holds"] is None
    experiment.claim("O2.2", False, "3 points")
    experiment.claim("O2.3", True, "60 % against 70 %")
    capsys.readouterr()
    experiment.verdicts()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["O2.1 holds", "O2.2 does not hold", "O2.3 holds"]
    assert not any("80 %" in line for line in lines)
    experiment.verdicts("O2.3")
    assert capsys.readouterr().out.startswith("O2.3 holds")
    with pytest.raises(ValueError, match=r"\['O2.7'\] are not of this notebook"):
        experiment.verdicts("O2.7")


def test_the_record_is_json_that_says_where_it_came_from(monkeypatch):
    monkeypatch.setenv("FL_NOTEBOOKS_OVERRIDES", "rounds=1")
    experiment = Experiment("D1", seed=3, scale="paper")
    experiment.value("accuracy/central", 0.9)
    experiment.traffic(10, 20)
    experiment._started -= 1.5
    outputs = shown(monkeypatch)
    experiment.table()
    experiment.record()
    assert "<table>" in outputs[0]["text/html"]
    assert "0.9417" in outputs[0]["text/plain"]
    assert "paper (rounds=1)" in outputs[0]["text/plain"]
    record = json.loads(json.dumps(outputs[1][MIME], allow_nan=False))
    assert (record["paper"], record["experiments"], record["scale"]) == ("decentralized", ["D1"], "paper")
    assert (record["seed"], record["overrides"]) == (3, "rounds=1")
    assert (record["bytes_up"], record["bytes_down"]) == (10, 20)
    assert 1.5 <= record["seconds"] < 60
    assert record["versions"]["torch"] == torch.__version__


def test_it_seeds_torch():
    Experiment("O2", seed=5)
    drawn = torch.rand(3)
    Experiment("O2", seed=5)
    assert torch.equal(drawn, torch.rand(3))


@pytest.mark.parametrize(
    ("ids", "arguments", "message"),
    [
        ([], {}, "no experiment id"),
        (["X1"], {}, "experiment 'X1'"),
        (["O99"], {}, "neither numbers nor claims"),
        (["O2", "D1"], {}, "different papers"),
        (["O2"], {"scale": "huge"}, "embedded, paper"),
    ],
)
def test_what_is_no_experiment_is_named(ids, arguments, message):
    with pytest.raises(ValueError, match=message):
        Experiment(*ids, seed=0, **arguments)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures the way Linux does")
def test_peak_memory_is_this_process_own_and_not_its_parents():
    block = bytearray(300_000_000)
    block[::4096] = b"x" * len(block[::4096])
    script = "from fl_utils.experiment import peak_mb; print(peak_mb())"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert peak_mb() > 300
    assert float(child.stdout) < 200
