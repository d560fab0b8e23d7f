"""The comparison of two benchmark results, and their figures."""

import copy
import io
import json

import pytest
from PIL import Image

from benchmarks import compare, draw


def result() -> dict:
    def figures(ratio, spread, **extra):
        return {"cpu_s": ratio, "ratio": ratio, "ratio_min": ratio - spread, "ratio_max": ratio + spread, **extra}

    groups = {
        "2NN": {"plain SGD": figures(1.0, 0.0), "fl_utils": figures(0.9, 0.05, limit=0.95), "pfl": figures(1.5, 0.1)}
    }
    return {"benchmark": "simulation", "results": groups}


def changed(**figures):
    other = result()
    other["results"]["2NN"]["fl_utils"].update(figures)
    return other["results"]


def test_the_same_and_a_faster_result_are_no_regression():
    assert compare.differences(result()["results"], result()["results"]) == []
    assert compare.differences(result()["results"], changed(ratio=0.5, ratio_min=0.4, ratio_max=0.6)) == []


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        (
            {"ratio": 1.2, "ratio_min": 1.1, "ratio_max": 1.3, "limit": 2.0},
            ["2NN, fl_utils: 0.90 before, 1.20 now (+33%)"],
        ),
        ({"ratio": 1.2, "ratio_min": 0.9, "ratio_max": 1.3, "limit": 2.0}, []),  # the spreads meet
        (
            {"ratio": 0.97, "ratio_min": 0.96, "ratio_max": 1.0},
            ["2NN, fl_utils: 0.97, over its limit of 0.95 (0.90 before)"],
        ),
    ],
)
def test_slower_is_named_where_the_spreads_do_not_meet(figures, said):
    assert compare.differences(result()["results"], changed(**figures)) == said


def test_who_is_gone_is_named():
    fewer = copy.deepcopy(result()["results"])
    del fewer["2NN"]["pfl"]
    assert compare.differences(result()["results"], fewer) == ["2NN, pfl: gone"]


def test_the_command_says_0_1_or_2(tmp_path, capsys):
    old, slow, other, broken = (tmp_path / f"{name}.json" for name in ("old", "slow", "other", "broken"))
    old.write_text(json.dumps(result()))
    slow.write_text(json.dumps(result() | {"results": changed(ratio=3.0, ratio_min=2.9, ratio_max=3.1)}))
    other.write_text(json.dumps(result() | {"benchmark": "privacy"}))
    broken.write_text("{")
    assert compare.main([str(old), str(old)]) == 0
    assert compare.main([str(old), str(slow)]) == 1
    assert compare.main([str(old), str(slow), "--tolerance", "5"]) == 1  # still over its limit
    assert compare.main([str(old), str(other)]) == 2
    assert compare.main([str(old), str(broken)]) == 2
    assert "broken.json: not a benchmark's result" in capsys.readouterr().err


def test_a_figure_has_a_panel_for_each_group(tmp_path):
    one = Image.open(io.BytesIO(draw.draw(result())))
    two = result()
    two["results"]["CNN"] = two["results"]["2NN"]
    assert Image.open(io.BytesIO(draw.draw(two))).height > 1.6 * one.height
