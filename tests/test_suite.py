import json

import pytest
from tiny_repository import notebook, repository

from fl_utils import suite
from fl_utils.experiment import MIME
from fl_utils.papers import published
from fl_utils.paths import NOTEBOOKS


@pytest.fixture
def shown(tmp_path):
    """Notebooks that use things in every way a notebook can, and one that is no notebook."""

    def look(**cells: str):
        texts = {f"oarf/{name}.ipynb": notebook(*code) for name, code in cells.items()}
        repository(tmp_path, texts)
        return {s.notebook.removeprefix("oarf/").removesuffix(".ipynb"): s for s in suite.look(tmp_path / "notebooks")}

    return look


def test_use_is_seen_through_imports_aliases_and_attributes(shown):
    found = shown(
        plain=("from fl_utils import federation", "federation.run(1)"),
        renamed=("import fl_utils.privacy as p\np.budget()",),
        below=("from fl_utils.secure.average import Parties",),
        idle=("federation = 3\nfederation.run",),
        broken=("this is no python",),
    )
    assert found["plain"].has("fl_utils.federation.run")
    assert not found["plain"].has("fl_utils.federation.runner")
    assert found["renamed"].has("fl_utils.privacy")
    assert found["below"].has("fl_utils.secure") and not found["below"].has("fl_utils.sec")
    assert not found["idle"].uses and not found["broken"].uses
    table = suite.coverage(found.values())
    assert table["partitioning"] == {"horizontal": ["oarf/plain.ipynb"], "vertical": [], "hybrid": []}
    assert table["privacy"]["differential privacy"] == ["oarf/renamed.ipynb"]
    assert table["privacy"]["secure multiparty computation"] == ["oarf/below.ipynb"]


def test_use_is_seen_through_the_functions_of_this_package(shown):
    found = shown(
        sentiment=("from fl_utils import parties\nparties.sentiment(0)",),
        characters=("from fl_utils.parties import characters as c\nc(0)",),
        private=("from fl_utils import privacy\nprivacy.run(1)",),
        gossip=("from fl_utils import schedules\nschedules.gossip(1)",),
        method=("from fl_utils.models.text import SentimentLSTM\nSentimentLSTM.forward",),
        beside=("from fl_utils.parties import split_cards\nsplit_cards('a+b')",),
    )
    table = suite.coverage(found.values())
    assert table["models"]["RNN"] == ["oarf/method.ipynb", "oarf/sentiment.ipynb"]
    assert table["models"]["CNN"] == ["oarf/characters.ipynb"]
    assert table["timing"] == {"synchronous": ["oarf/private.ipynb"], "asynchronous": []}
    assert table["topology"]["decentralised"] == ["oarf/gossip.ipynb"]


def test_a_vertical_notebook_that_is_added_later_changes_the_answer(shown):
    first = shown(one=("from fl_utils.federation import run\nrun()",))
    assert not suite.table_1(first.values())["partitioning_scheme"]
    later = shown(two=("from fl_utils.vertical import hetero_nn",), three=("import tenseal",))
    assert suite.table_1(later.values())["partitioning_scheme"]
    assert suite.coverage(later.values())["privacy"]["homomorphic encryption"] == ["oarf/three.ipynb"]
    both = shown(four=("from fl_utils.federation import run", "from fl_utils.vertical import psi"))
    assert suite.coverage(both.values())["partitioning"]["hybrid"] == ["oarf/four.ipynb"]


def test_metrics_come_from_records_and_never_from_the_one_that_asks(tmp_path):
    text = json.loads(notebook("1"))
    record = {"values": [{"metric": "accuracy/fedavg/combined"}], "bytes_up": 12}
    text["cells"][-1]["outputs"] = [{"output_type": "display_data", "metadata": {}, "data": {MIME: record}}]
    repository(tmp_path, {"oarf/a.ipynb": json.dumps(text)})
    (shown,) = suite.look(tmp_path / "notebooks")
    assert shown.has("record:accuracy") and shown.has("record:bytes") and not shown.has("record:accura")
    (shown,) = suite.look(tmp_path / "notebooks", running="oarf/a.ipynb")
    assert not shown.metrics


def test_what_cannot_be_read_shows_nothing(tmp_path):
    repository(tmp_path, {"oarf/a.ipynb": "{", "tutorials/solutions/b.ipynb": notebook("import opacus")})
    assert [(s.notebook, s.uses) for s in suite.look(tmp_path / "notebooks")] == [("oarf/a.ipynb", frozenset())]


def test_federated_data_has_several_parties(shown):
    assert not suite.table_1([suite.Shown("a", cards=("imdb",))])["federated_dataset"]
    assert suite.table_1([suite.Shown("a", cards=("imdb", "amazon"))])["federated_dataset"]
    assert suite.table_1([suite.Shown("a", cards=("digits",))])["federated_dataset"]
    assert not suite.table_1([suite.Shown("a", cards=("no such card",))])["federated_dataset"]


def test_the_five_questions_are_those_of_table_1():
    asked = {metric.partition("/")[0] for metric, row in published("O13").items() if row.where == "Table 1"}
    assert set(suite.table_1([])) == asked
    assert not any(suite.table_1([]).values())


def test_table_2_names_data_sets_of_the_paper_and_cards_or_ones_to_come():
    names = {metric.rpartition("/")[2] for metric in published("O13") if metric.startswith("instances/")}
    assert set(suite.TABLE_2) <= names
    assert suite.instances({"train": 3, "test": {"a": 4, "b": 5}}) == 12
    assert suite.instances({"readings": 34272, "sensors": 207}) == 34272
    assert suite.instances({"all": "many"}) is None
    assert suite.listed("movielens_1m") == 1_000_209
    assert suite.listed("ign_rating") == 18_625 and suite.listed("video_game_sales") == 16_598
    assert suite.listed("million_song") is None
    assert suite.instances({"all": "7911684 reviews, some left out", "part": "1000 of them"}) == 7911684


def test_this_collection_as_it_stands():
    found = suite.coverage(suite.look(NOTEBOOKS))
    assert "oarf/02_table3b_sentiment.ipynb" in found["models"]["RNN"]
    assert "oarf/05_figure4_lot_size.ipynb" in found["timing"]["synchronous"]
    assert found["timing"]["asynchronous"] and found["topology"]["decentralised"]
    assert found["privacy"]["differential privacy"]
