"""The papers' numbers: files well-formed, tables complete, and the arithmetic that the papers themselves allow.

``recount`` and ``row_problems`` are plain functions over rows, so that the tests can also show that each finds a fault.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter

import pytest
import yaml

from fl_utils import papers as library
from fl_utils.paths import PAPERS, ROOT

HEADER = ["experiment", "metric", "value", "unit", "where", "note"]
EXPERIMENTS = {
    "oarf": [f"O{i}" for i in range(1, 14)],
    "mobile": [f"M{i}" for i in range(1, 13)],
    "faces": [f"F{i}" for i in range(1, 9)],
    "decentralized": [f"D{i}" for i in range(1, 4)],
}
# What EXPERIMENTS owes no published number for: tasks that a paper only describes.
UNPUBLISHED = {"O8", "O9", "O10", "O11", "O12"}
WHERE = re.compile(r"(Tables?|Figures?|Listing|sections?|chapter|appendix|abstract|equation)\b.*")
METRIC = re.compile(r"[a-z0-9][a-z0-9._+-]*(/[a-z0-9._+-]+)*")
SEEDS = ROOT.parent / "shared" / "seeds"

each_paper = pytest.mark.parametrize("paper", EXPERIMENTS)


def read_rows(paper: str) -> list[dict[str, str]]:
    """The rows of one ``published.csv``; RFC 4180 to the letter, or ValueError naming the line."""
    text = (PAPERS / paper / "published.csv").read_text(encoding="utf-8")
    lines = list(csv.reader(io.StringIO(text), strict=True))
    if lines[0] != HEADER:
        raise ValueError(f"{paper}: header {lines[0]}, want {HEADER}")
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(HEADER):
            raise ValueError(f"{paper}: record {number} has {len(line)} fields, want {len(HEADER)}: {line}")
    return [dict(zip(HEADER, line, strict=True)) for line in lines[1:]]


def load(paper: str, name: str):
    return yaml.safe_load((PAPERS / paper / name).read_text(encoding="utf-8"))


def number(text: str) -> float | None:
    """``text`` as a finite float in plain notation, else None (a range, a mark, N/A, nan)."""
    if not re.fullmatch(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?", text):
        return None
    return float(text)


def row_problems(rows: list[dict[str, str]], experiments: list[str]) -> list[str]:
    """One line for each fault of a row taken by itself or against the others."""
    problems = []
    for row in rows:
        name = f"{row['experiment']} {row['metric']}"
        if row["experiment"] not in experiments:
            problems.append(f"{name}: unknown experiment, want one of {experiments}")
        if not METRIC.fullmatch(row["metric"]):
            problems.append(f"{name}: metric is not a lower-case slash-separated path")
        if not WHERE.fullmatch(row["where"]):
            problems.append(f"{name}: where {row['where']!r} names no place in a paper")
        if not row["value"]:
            problems.append(f"{name}: no value")
        elif number(row["value"]) is None and not row["note"]:
            problems.append(f"{name}: value {row['value']!r} is no number and no note says what it is")
        elif number(row["value"]) is not None and not row["unit"]:
            problems.append(f"{name}: a number without a unit")
        problems += [f"{name}: blanks around {key}" for key in HEADER if row[key] != row[key].strip()]
    keys = Counter((row["experiment"], row["metric"]) for row in rows)
    problems += [f"{key}: {times} rows" for key, times in keys.items() if times > 1]
    return problems


def recount(rows: list[dict[str, str]], tables: list[dict], text_values: list[dict]) -> list[str]:
    """Each place and experiment whose number of rows is not the declared one, in either direction."""
    declared: Counter = Counter()
    for table in tables:
        declared[table["where"], table["experiment"]] += table["rows"] * table["columns"] - table["empty"]
    for text in text_values:
        declared[text["where"], text["experiment"]] += text["values"]
    found = Counter((row["where"], row["experiment"]) for row in rows)
    return [
        f"{where}, {experiment}: {found[where, experiment]} rows, declared {declared[where, experiment]}"
        for where, experiment in sorted(set(found) | set(declared))
        if found[where, experiment] != declared[where, experiment]
    ]


def published(paper: str, experiment: str) -> dict[str, float]:
    """The numbers of one experiment by metric; what is not a number is left out."""
    rows = [row for row in read_rows(paper) if row["experiment"] == experiment]
    return {row["metric"]: value for row in rows if (value := number(row["value"])) is not None}


# ------------------------------------------------------------------------------------------------ the files' form


@each_paper
def test_csv_bytes(paper):
    raw = (PAPERS / paper / "published.csv").read_bytes()
    assert not raw.startswith(b"\xef\xbb\xbf"), "byte order mark"
    assert b"\r" not in raw, "line ends are LF"
    assert raw.endswith(b"\n") and not raw.endswith(b"\n\n")
    rows = read_rows(paper)
    again = io.StringIO()
    writer = csv.DictWriter(again, HEADER, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    assert again.getvalue().encode() == raw, "quotes only where RFC 4180 needs them"


@each_paper
def test_rows(paper):
    assert row_problems(read_rows(paper), EXPERIMENTS[paper]) == []


@each_paper
def test_every_experiment_with_figures_has_rows(paper):
    found = {row["experiment"] for row in read_rows(paper)}
    assert found == set(EXPERIMENTS[paper]) - UNPUBLISHED


def test_row_problems_finds_each_fault():
    good = dict(zip(HEADER, ["O1", "accuracy/fedavg", "95.4", "%", "Table 3a", ""], strict=True))
    assert row_problems([good], ["O1"]) == []
    faults = [
        {"experiment": "O2"},
        {"metric": "Accuracy fedavg"},
        {"metric": "accuracy//fedavg"},
        {"value": ""},
        {"value": "~95"},
        {"value": "16,536"},
        {"value": "nan"},
        {"unit": ""},
        {"where": "p. 3"},
        {"note": " blank"},
    ]
    for fault in faults:
        assert len(row_problems([good | fault], ["O1"])) == 1, fault
    assert row_problems([good | {"value": "~95", "note": "approximate"}], ["O1"]) == []
    assert len(row_problems([good, dict(good)], ["O1"])) == 1


# ------------------------------------------------------------------------------------------------ complete tables


@each_paper
def test_recount(paper):
    about = load(paper, "paper.yaml")
    assert recount(read_rows(paper), about["tables"], about["text_values"]) == []


@each_paper
def test_recount_finds_a_lost_row_and_an_undeclared_place(paper):
    about = load(paper, "paper.yaml")
    rows = read_rows(paper)
    assert len(recount(rows[1:], about["tables"], about["text_values"])) == 1
    assert len(recount([*rows, rows[-1]], about["tables"], about["text_values"])) == 1
    assert len(recount([*rows, rows[0] | {"where": "Table 99"}], about["tables"], about["text_values"])) == 1
    assert len(recount(rows, about["tables"][1:], about["text_values"])) == 1


@each_paper
def test_paper_yaml(paper):
    about = load(paper, "paper.yaml")
    keys = {"key", "title", "authors", "year", "venue", "citation", "seed_text", "setup", "tables", "text_values"}
    assert set(about) == keys
    assert about["key"] == paper
    assert about["authors"] and all(isinstance(author, str) for author in about["authors"])
    assert 2015 <= about["year"] <= 2025
    assert about["title"] in about["citation"].replace("\n", " ") and str(about["year"]) in about["citation"]
    assert re.fullmatch(r"\d{3}_[0-9a-f]{16}\.txt", about["seed_text"])
    for entry in about["setup"]:
        assert set(entry) == {"name", "value", "where"} and all(entry[key] not in ("", None) for key in entry), entry
        assert WHERE.fullmatch(entry["where"]), entry
    for table in about["tables"]:
        assert set(table) == {"where", "experiment", "rows", "columns", "empty", "caption"}, table
        assert table["rows"] >= 1 and table["columns"] >= 1, table
        assert 0 <= table["empty"] < table["rows"] * table["columns"], table
        assert table["where"].startswith("Table ") and table["caption"], table
    for text in about["text_values"]:
        assert set(text) == {"where", "experiment", "values"} and text["values"] >= 1, text
    names = Counter(entry["name"] for entry in about["setup"])
    assert [name for name, times in names.items() if times > 1] == []
    places = Counter((entry["where"], entry["experiment"]) for entry in about["tables"] + about["text_values"])
    assert [place for place, times in places.items() if times > 1] == []


@each_paper
def test_numbers_stand_in_the_paper(paper):
    seed = SEEDS / load(paper, "paper.yaml")["seed_text"]
    if not seed.exists():
        pytest.skip("the papers' texts are not part of the repository")
    text = seed.read_text(encoding="utf-8")
    figure = re.compile(r"\d+(?:\.\d+)?(?:[eE]-?\d+)?")
    printed = set(figure.findall(text)) | set(figure.findall(re.sub(r"(?<=\d)[.,](?=\d{3}(?!\d))", "", text)))
    rows = [row for row in read_rows(paper) if number(row["value"]) is not None]
    strange = [row for row in rows if row["value"].lstrip("+-") not in printed]
    assert rows and [(row["where"], row["metric"], row["value"]) for row in strange] == []


# ------------------------------------------------------------------------------------------------ claims


@each_paper
def test_claims(paper):
    claims = load(paper, "claims.yaml")
    assert claims
    seen: Counter = Counter()
    for claim in claims:
        assert set(claim) - {"needs"} == {"id", "experiment", "statement", "source", "beyond_paper"}, claim
        assert claim.get("needs", "?").strip(), claim  # what a claim cannot be decided without, where it says so
        assert claim["experiment"] in EXPERIMENTS[paper], claim
        seen[claim["experiment"]] += 1
        assert claim["id"] == f"{claim['experiment']}.{seen[claim['experiment']]}", "numbered from 1 in order"
        assert isinstance(claim["beyond_paper"], bool) and claim["source"], claim
        statement = claim["statement"]
        assert statement == " ".join(statement.split()), f"{claim['id']}: one line, single blanks"
        assert statement[0].isupper() and statement.endswith("."), f"{claim['id']}: a sentence"
        assert len(statement.split()) >= 5, f"{claim['id']}: a complete sentence"


def test_claims_that_the_plan_lists():
    count = {key: Counter(claim["experiment"] for claim in load(key, "claims.yaml")) for key in EXPERIMENTS}
    assert set(count["oarf"]) == set(EXPERIMENTS["oarf"])
    assert set(count["mobile"]) >= {f"M{i}" for i in range(1, 13)} - {"M6", "M9"}
    assert set(count["faces"]) >= {"F1", "F2", "F3", "F4"}
    assert (count["decentralized"]["D2"], count["decentralized"]["D3"]) == (1, 3)


# ------------------------------------------------------------------------------------------------ the papers' own sums


@pytest.mark.parametrize(("experiment", "who"), [("D1", "central"), ("D3", "polyak")])
def test_decentralized_matrices_give_the_printed_scores(experiment, who):
    values = published("decentralized", experiment)
    cell = {(p, t): values[f"confusion/{who}/predicted_{p}_true_{t}"] for p in (0, 1) for t in (0, 1)}
    total = sum(cell.values())
    assert total == 1012 == values["test_images/cats"] + values["test_images/dogs"] - 1
    assert cell[0, 0] + cell[1, 0] == cell[0, 1] + cell[1, 1] == 506
    assert (cell[0, 0] + cell[1, 1]) / total == pytest.approx(values[f"accuracy/{who}"], abs=6e-5)
    assert cell[1, 1] / (cell[1, 1] + cell[1, 0]) == pytest.approx(values[f"precision/{who}"], abs=6e-5)
    assert cell[1, 1] / (cell[1, 1] + cell[0, 1]) == pytest.approx(values[f"recall/{who}"], abs=6e-5)
    # the layout that the printed labels suggest (rows = true) gives neither precision nor recall
    assert cell[1, 1] / (cell[1, 1] + cell[0, 1]) != pytest.approx(values[f"precision/{who}"], abs=6e-5)


def test_decentralized_submodels_are_ratios_over_506_images_a_class():
    """Each row of Table II comes from exactly one 2x2 matrix with 506 images a class (figures rounded or cut off)."""
    values = published("decentralized", "D2")
    for i in range(1, 11):
        accuracy, precision, recall = (values[f"{score}/submodel_{i}"] for score in ("accuracy", "precision", "recall"))
        fits = [
            (hits, false)
            for hits in range(507)
            if abs(hits / 506 - recall) < 1.01e-4
            for false in range(507)
            if abs(hits / max(hits + false, 1) - precision) < 1.01e-4
            and abs((hits + 506 - false) / 1012 - accuracy) < 1.01e-4
        ]
        assert len(fits) == 1, (i, fits)


def test_decentralized_claims_hold_in_the_paper():
    central = published("decentralized", "D1")["accuracy/central"]
    aggregate = published("decentralized", "D3")["accuracy/polyak"]
    alone = published("decentralized", "D2")
    best = max(alone[f"accuracy/submodel_{i}"] for i in range(1, 11))
    assert best < aggregate < central
    assert central - aggregate == pytest.approx(0.0069)


@pytest.mark.parametrize(("task", "epochs"), [("chinese_characters", 10), ("sentiment_analysis", 30)])
def test_oarf_transfer_saved(task, epochs):
    """Averages fall from epochs to epochs / 2; each carries the weights twice."""
    values = published("oarf", "O3")
    saved = values[f"weights/{task}"] * 2 * (epochs - epochs / 2)
    assert saved == pytest.approx(values[f"transfer_saved/{task}/interval_1_to_2"])


@pytest.mark.parametrize(("experiment", "parties"), [("O1", ["casia", "hit"]), ("O2", ["imdb", "amazon"])])
def test_oarf_table_3(experiment, parties):
    values = published("oarf", experiment)
    fedavg = values["accuracy/fedavg/combined"]
    assert all(fedavg > values[f"accuracy/{party}/combined"] for party in parties)
    assert values["accuracy/combined/combined"] - fedavg <= 1.1 + 1e-9
    for own, other in [parties, parties[::-1]]:
        assert values[f"accuracy/{own}/{other}"] < values[f"accuracy/fedavg/{other}"]
    for training in [*parties, "combined", "fedavg"]:  # the combined test set lies between its two parts
        parts = [values[f"accuracy/{training}/{party}"] for party in parties]
        assert min(parts) < values[f"accuracy/{training}/combined"] < max(parts)


def test_oarf_table_3b_test_sets_are_equal_in_size():
    """Two equal test sets make the combined accuracy the mean of both, to rounding; one printed cell does not fit."""
    values = published("oarf", "O2")
    off = {
        training: values[f"accuracy/{training}/combined"]
        - (values[f"accuracy/{training}/imdb"] + values[f"accuracy/{training}/amazon"]) / 2
        for training in ("imdb", "amazon", "combined", "fedavg")
    }
    assert [training for training, gap in off.items() if abs(gap) > 0.1 + 1e-9] == ["combined"]


def test_oarf_tables_4_and_5():
    values = published("oarf", "O6")
    lost = [
        round(values[f"accuracy/without_smc/{party}"] - values[f"accuracy/with_smc/{party}"], 1)
        for party in ("casia", "hit", "imdb", "amazon")
    ]
    assert lost == [0.2, 0.3, 1.2, 1.0]
    added = [
        values[f"seconds_per_epoch/with_smc/{task}"] - values[f"seconds_per_epoch/without_smc/{task}"]
        for task in ("chinese_characters", "sentiment_analysis")
    ]
    weights = published("oarf", "O3")
    sizes = weights["weights/sentiment_analysis"] / weights["weights/chinese_characters"]
    assert added == [5, 61]
    assert 1 < added[1] / added[0] / sizes < 1.5  # claim O6.1
    rating = published("oarf", "O7")
    assert rating["mse/rating_auxiliary"] < rating["mse/rating"]
    batches = rating["hours_of_training/rating_fed_auxiliary"] * 3600 / rating["seconds_per_batch/rating_fed_auxiliary"]
    # so the 403 hours are one epoch, as Table 5 says: nine tenths of MovieLens 1M's 1,000,209 ratings in batches of 128
    assert batches == pytest.approx(0.9 * 1_000_209 / 128, rel=0.005)


def test_oarf_tables_1_and_2():
    rows = [row for row in read_rows("oarf") if row["experiment"] == "O13"]
    marks = [row for row in rows if row["where"] == "Table 1"]
    assert Counter(row["value"] for row in marks) == {"yes": 13, "no": 17}
    assert all(row["value"] == "yes" for row in marks if row["metric"].endswith("/oarf"))
    counts = [row for row in rows if row["where"] == "Table 2"]
    assert all(re.fullmatch(r"~\d+(\.\d+)?[kM]", row["value"]) for row in counts)
    for row in counts:  # the note spells the printed count out
        size = float(row["value"][1:-1]) * {"k": 1e3, "M": 1e6}[row["value"][-1]]
        spelled = re.match(r"approximate as printed: about ([\d ]+\d)", row["note"])
        assert spelled and int(spelled[1].replace(" ", "")) == round(size), row


def test_mobile_sizes_and_ratios():
    images = published("mobile", "M7")
    for model in ("mobilenet", "squeezenet1_0", "vgg16"):
        ratio = images[f"model_size/{model}/imagenette"] * 1000 / images["image_size/imagenette"]
        assert math.floor(ratio) == images[f"images_per_model/{model}/imagenette"]
    cifar = images["model_size/mobilenet/cifar-10"] * 1000 / images["image_size/cifar-10"]
    assert cifar == pytest.approx(images["images_per_model/mobilenet/cifar-10"])
    bits = published("mobile", "M10")
    for data, few in (("cifar-10", 4), ("imagenette", 8)):
        ratio = bits[f"model_size/{data}/32_bits"] / bits[f"model_size/{data}/{few}_bits"]
        assert ratio == pytest.approx(bits[f"size_ratio/{data}/{few}_bits"], abs=0.05)
    seconds = published("mobile", "M11")
    ratio = seconds["seconds/iphone_x"] / seconds["seconds/macbook"]
    assert ratio == pytest.approx(seconds["seconds_ratio/iphone_to_laptop"], abs=0.05)


def test_faces_speedups():
    """Equation 6 on the printed throughputs; one printed speed-up is another model's."""
    values = published("faces", "F6")
    wrong, checked = [], 0
    for metric, speedup in values.items():
        match = re.fullmatch(r"speedup/(.+)/gpus_(2|4)", metric)
        if match is None:
            continue
        before = values[f"throughput/{match[1]}/gpus_{int(match[2]) // 2}"]
        after = values[f"throughput/{match[1]}/gpus_{match[2]}"]
        checked += 1
        if abs(100 * (after - before) / before - speedup) > 1.0:
            wrong.append(metric)
    assert checked == 22  # four models, three frameworks, two steps, two of them printed as "over 50"
    assert wrong == ["speedup/inception-v3/tensorflow/gpus_4"]


def test_faces_parameters_follow_from_the_head():
    """torchvision's 1000-class counts with the last layer exchanged for WebFace's 10,575 identities, in millions."""
    values = published("faces", "F1")
    stock = {"alexnet-v2": (61_100_840, 4096), "vgg-16": (138_357_544, 4096), "resnet-50": (25_557_032, 2048)}
    for model, (parameters, features) in stock.items():
        built = parameters + (10_575 - 1000) * (features + 1)
        assert round(built / 1e6, 2) == values[f"parameters/{model}/pytorch"]


def own_paper(root, letter):
    folder = root / "mine"
    folder.mkdir()
    (folder / "paper.yaml").write_text(f"key: mine\nletter: {letter}\n", encoding="utf-8")
    (folder / "published.csv").write_text(f"{','.join(HEADER)}\nS1,accuracy,86.0,%,Table 1,\n", encoding="utf-8")
    return root


def test_a_paper_of_ones_own_has_a_letter(tmp_path):
    papers = own_paper(tmp_path, "S")
    assert library.paper_of("S1", papers) == "mine"
    assert library.published("S1", papers)["accuracy"].number == 86.0
    assert library.paper_of("O2", papers) == "oarf"
    with pytest.raises(ValueError, match="want a letter of O, M, F, D and a number"):
        library.paper_of("S1")


@pytest.mark.parametrize(("letter", "said"), [("O", "letter O is oarf's already"), ("ab", "letter is 'ab', want one")])
def test_a_letter_that_cannot_be_is_named(tmp_path, letter, said):
    with pytest.raises(ValueError, match=said):
        library.letters(own_paper(tmp_path, letter))
