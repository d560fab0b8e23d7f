"""Every printed cell of Tables 3.1 to 3.4 has its counterpart in a built network, and the misprints stand out."""

import pytest
import torch

from fl_utils import costs, papers, thesis_tables
from fl_utils.models import mobile

SHAPE = (3, 224, 224)
GROUPS = (1, 2, 3, 4, 8)


def counted(model):
    return costs.count(model, SHAPE)


@pytest.fixture(scope="module")
def cells():
    with torch.device("meta"):
        found = thesis_tables.squeezenet(counted(mobile.squeezenet(1000)))
        found |= thesis_tables.mobilenet_v1(counted(mobile.mobilenet_v1(1000)))
        found |= thesis_tables.mobilenet_v2(counted(mobile.mobilenet_v2(1000)))
        return found | thesis_tables.shufflenet_v1({g: counted(mobile.shufflenet_v1(1000, g)) for g in GROUPS})


def differing(cells, table):
    published = papers.published("M12")
    printed = thesis_tables.printed(cells, [metric for metric in published if metric.startswith(table)])
    return {metric for metric, value in printed.items() if published[metric].number != value}


@pytest.mark.parametrize(
    ("table", "count"), [("table_3_1", 72), ("table_3_2", 161), ("table_3_3", 54), ("table_3_4", 84)]
)
def test_every_printed_cell_has_its_counterpart(cells, table, count):
    metrics = [metric for metric in papers.published("M12") if metric.startswith(table)]
    assert len(thesis_tables.printed(cells, metrics)) == len(metrics) == count


def test_the_misprints_and_no_others_differ(cells):
    sizes = {f"table_3_1/{row}/input_{side}" for side in ("height", "width") for row in BEFORE_THE_SECOND_POOL}
    assert differing(cells, "table_3_1") == sizes | {"table_3_1/12_fire/input_width"}
    assert differing(cells, "table_3_2") == {"table_3_2/18_conv_dw/stride"}
    assert differing(cells, "table_3_3") == {"table_3_3/10_avg_pool/stride", "table_3_3/11_conv/n"}  # printed as dashes
    channels = {f"table_3_4/01_conv/g_{g}" for g in GROUPS}
    assert differing(cells, "table_3_4") == channels | {f"table_3_4/11_complexity/g_{g}" for g in GROUPS}


BEFORE_THE_SECOND_POOL = ("02_maxpool", "03_fire", "04_fire", "05_fire", "06_maxpool")


def test_other_strides_would_be_seen(cells):
    with torch.device("meta"):
        kuangliu = thesis_tables.mobilenet_v2(counted(mobile.mobilenet_v2(1000, "kuangliu")))
        printed = thesis_tables.mobilenet_v1(counted(mobile.mobilenet_v1(1000, strides="table_3_2")))
    changed = {metric for metric in kuangliu if metric.endswith("stride") and kuangliu[metric] != cells[metric]}
    assert changed == {"table_3_3/01_conv/stride", "table_3_3/03_bottleneck/stride"}
    assert {m for m in printed if printed[m] != cells[m]} == {
        "table_3_2/18_conv_dw/stride",
        *(f"table_3_2/{row}_{side}" for row in ("19_conv/input", "20_avg_pool/input") for side in ("height", "width")),
        *(f"table_3_2/20_avg_pool/filter_{side}" for side in ("height", "width")),
    }


def test_networks_of_two_designs_and_missing_cells_are_named(cells):
    with torch.device("meta"):
        two = {1: counted(mobile.shufflenet_v1(10, 1)), 2: counted(mobile.shufflenet_v1(10, 2, first_stride=1))}
    with pytest.raises(ValueError, match=r"table_3_4/01_conv/stride is not the same for 2 groups"):
        thesis_tables.shufflenet_v1(two)
    with pytest.raises(ValueError, match=r"no counterpart of table_9/x and 0 more"):
        thesis_tables.printed(cells, ["table_9/x"])
