"""What this collection has of what Hu et al. 2020 ask of a benchmark (Tables 1 and 2, Figure 1), read from its files.

Nothing here is a list of achievements. A notebook shows something where its code uses the function or library that does
it, itself or through what it calls of this package, or where the record in its last cell has the figures; a notebook
that is added later is found by the same look. What no notebook uses is absent.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fl_utils import paths
from fl_utils.runner import catalog, records
from fl_utils.runner.outcomes import outputs_of

# What stands for each item: a room, a function or a package (everything below it counts), or "record:" and a metric.
TRAINING = ("fl_utils.federation.run",)
SIGNS: dict[str, dict[str, tuple[str, ...]]] = {
    "partitioning": {
        "horizontal": (*TRAINING, "fl_utils.schedules"),
        "vertical": ("fl_utils.vertical",),
        "hybrid": ("record:rmse/trees/gaps left empty",),
    },
    "models": {
        "CNN": ("torch.nn.Conv2d", "torchvision.models"),
        "RNN": ("torch.nn.LSTM", "torch.nn.GRU", "torch.nn.RNN", "fl_utils.models.traffic.DCRNN"),
        "MLP": ("fl_utils.models.vision.two_nn", "fl_utils.models.recommendation"),
        "embedding and linear": ("fl_utils.models.private",),
    },
    "privacy": {
        "differential privacy": ("fl_utils.privacy", "opacus"),
        "secure multiparty computation": ("fl_utils.secure", "crypten"),
        "homomorphic encryption": ("fl_utils.vertical.encryption", "tenseal", "phe"),
        "private set intersection": ("fl_utils.vertical.psi", "private_set_intersection"),
    },
    "metrics": {
        "accuracy": ("record:accuracy", "record:mae", "record:mse"),
        "loss": ("record:validation_loss", "record:loss"),
        "epsilon, delta": ("fl_utils.privacy",),
        "communication: rounds and bytes": ("record:bytes",),
        "encryption overhead": ("record:seconds_per_epoch/with_smc", "record:overhead"),
    },
    "timing": {
        "synchronous": TRAINING,
        "asynchronous": ("fl_utils.schedules.asynchronous",),
    },
    "topology": {
        "centralised": (*TRAINING, "fl_utils.schedules.asynchronous"),
        "decentralised": ("fl_utils.schedules.gossip",),
    },
}

# The data sets of Table 2 and our cards for them, or a party of a card; None where there is none (yet).
TABLE_2: dict[str, str] = {
    "all_age_face": "all_age_faces",
    "appa_real": "appa_real",
    "bupt_balancedface": "bupt_balancedface",
    "racial_faces_in_the_wild": "rfw",
    "chars74k": "chars74k",
    "hit_or3c": "hit_or3c",
    "casia_hwdb1.1": "casia_hwdb",
    "imdb_movie_review": "imdb",
    "amazon_movie_review": "amazon",
    "metr_la": "metr_la",
    "pems_bay": "pems_bay",
    "ign_rating": "games/ign",
    "video_game_sales": "games/vgsales",
    "movielens_1m": "movielens_1m",
}


@dataclass(frozen=True)
class Shown:
    """One notebook: dotted names that its code uses, its cards, its record's metrics ("bytes" if it counted them)."""

    notebook: str
    uses: frozenset[str] = frozenset()
    cards: tuple[str, ...] = ()
    metrics: frozenset[str] = frozenset()

    def has(self, sign: str) -> bool:
        """Whether the notebook bears ``sign``: uses it or something below it, or has such a metric."""
        if sign.startswith("record:"):
            wanted = sign.removeprefix("record:")
            return any(metric == wanted or metric.startswith(f"{wanted}/") for metric in self.metrics)
        return any(name == sign or name.startswith(f"{sign}.") for name in self.uses)


def look(notebooks_dir: Path, running: str = "") -> list[Shown]:
    """Every notebook below ``notebooks_dir`` but the solutions and the index, in order of their paths.

    One that was never executed shows what its code uses and nothing else; so does the one that asks (``running``), for
    its saved outputs are those of another day. One that cannot be read shows nothing.
    """
    found = []
    for entry in catalog.scan(notebooks_dir):
        if entry.notebook == "index.ipynb" or "solutions" in Path(entry.notebook).parts:
            continue
        if entry.problem:
            found.append(Shown(entry.notebook))
            continue
        content = json.loads(entry.source)
        code = [cell for cell in content["cells"] if cell.get("cell_type") == "code"]
        uses: set[str] = set()
        names: dict[str, str] = {}
        for cell in code:
            uses |= used(records.text(cell.get("source")), names)
        dataset = entry.parameters["dataset"].default if "dataset" in entry.parameters else ""
        cards = tuple(card.strip() for card in str(dataset).split("+") if card.strip())
        metrics = frozenset() if entry.notebook == running else frozenset(_metrics(code))
        found.append(Shown(entry.notebook, frozenset(uses | reached(uses)), cards, metrics))
    return found


def used(source: str, names: dict[str, str]) -> set[str]:
    """The dotted names of what ``source`` imports and reaches through imports. ``names``: what earlier cells imported,
    local name -> dotted name; added to. A cell that is no Python uses nothing."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return set()
    here = _imports(tree)
    names |= here
    found = {each.name for node in ast.walk(tree) if isinstance(node, ast.Import) for each in node.names}
    return found | {*here.values()} | {dotted for node in ast.walk(tree) if (dotted := _dotted(node, names))}


def reached(uses: Iterable[str]) -> set[str]:
    """The dotted names that the functions and classes of this package among ``uses`` use, those that these use, and so
    on. So a notebook that names ``fl_utils.parties.sentiment`` alone is seen to train a ``torch.nn.LSTM``."""
    graph, found, ahead = _graph(paths.ROOT), set(), list(uses)
    while ahead:
        name = ahead.pop()
        while name and name not in graph:  # a method is found at its class
            name = name.rpartition(".")[0]
        new = graph.get(name, frozenset()) - found
        found |= new
        ahead += new
    return found


@cache
def _graph(root: Path) -> dict[str, frozenset[str]]:
    """What each function, class and constant of this package uses: dotted name -> dotted names."""
    graph: dict[str, frozenset[str]] = {}
    for path in sorted((root / "fl_utils").rglob("*.py")):
        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        body = ast.parse(path.read_text(encoding="utf-8")).body
        imported = _imports(ast.Module([each for each in body if isinstance(each, ast.Import | ast.ImportFrom)], []))
        builds = module.startswith("fl_utils.models")  # elsewhere a layer's name is a question about it, not a model
        defined: dict[str, ast.stmt] = {}
        for statement in body:
            if isinstance(statement, ast.FunctionDef | ast.ClassDef):
                defined[statement.name] = statement
            elif isinstance(statement, ast.Assign | ast.AnnAssign):
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                defined |= {target.id: statement for target in targets if isinstance(target, ast.Name)}
        here = imported | {name: f"{module}.{name}" for name in defined}
        for name, statement in defined.items():
            names = here | _imports(statement)
            found = {dotted for node in ast.walk(statement) if (dotted := _dotted(node, names))}
            graph[f"{module}.{name}"] = frozenset(each for each in found if builds or not each.startswith("torch"))
        for name, target in imported.items():  # what a module imports can be had from it
            graph.setdefault(f"{module}.{name}", frozenset({target}))
    return graph


def _imports(tree: ast.AST) -> dict[str, str]:
    """Local name -> dotted name of every import below ``tree``."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                top = each.name.partition(".")[0]
                names[each.asname or top] = each.name if each.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update({each.asname or each.name: f"{node.module}.{each.name}" for each in node.names})
    return names


def _dotted(node: ast.AST, names: Mapping[str, str]) -> str:
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if isinstance(node, ast.Attribute):
        below = _dotted(node.value, names)
        return f"{below}.{node.attr}" if below else ""
    return ""


def _metrics(code: list[dict]) -> set[str]:
    found: set[str] = set()
    for cell in code:
        for output in outputs_of(cell):
            record = output.get("data", {}).get(records.RECORD_MIME)
            if isinstance(record, dict):
                values = record.get("values") or []
                found |= {str(value.get("metric")) for value in values if isinstance(value, dict)}
                found |= {"bytes"} if record.get("bytes_up") else set()
    return found


def coverage(shown: Iterable[Shown]) -> dict[str, dict[str, list[str]]]:
    """Aspect -> item -> the notebooks that show it; an empty list is an item that is absent."""
    shown = list(shown)
    table = {
        aspect: {item: [s.notebook for s in shown if any(map(s.has, signs))] for item, signs in items.items()}
        for aspect, items in SIGNS.items()
    }
    both = set(table["partitioning"]["horizontal"]) & set(table["partitioning"]["vertical"])
    table["partitioning"]["hybrid"] = sorted({*table["partitioning"]["hybrid"], *both})
    return table


def table_1(shown: Iterable[Shown]) -> dict[str, bool]:
    """Our column of Table 1: each of the paper's five questions, answered from what the notebooks show.

    A data set is federated where its parties did not come from one data set: a card with several of them, or several
    cards in one notebook.
    """
    from fl_utils.data import cards

    shown = list(shown)
    found = coverage(shown)
    known = set(cards.names())
    parties = [sum(len(cards.load(card).parties) for card in s.cards if card in known) for s in shown]
    return {
        "federated_dataset": max(parties, default=0) > 1,
        "partitioning_scheme": sum(map(bool, found["partitioning"].values())) > 1,
        "various_ml_models": sum(map(bool, found["models"].values())) > 1,
        "privacy_mechanism": any(found["privacy"].values()),
        "communication_cost": bool(found["metrics"]["communication: rounds and bytes"]),
    }


def listed(name: str) -> int | None:
    """How many instances a data set of Table 2 has by its card (:data:`TABLE_2`); None where there is no card."""
    from fl_utils.data import cards

    card, _, part = TABLE_2.get(name, "").partition("/")
    if card not in cards.names():
        return None
    examples = cards.load(card).examples
    return instances({part: examples[part]} if part else examples)


def instances(examples: Mapping) -> int | None:
    """How many a card says there are: its readings, its ratings, or its ``all`` (a number, or a text that begins with
    one), else the sum of its numbers; None where it does not say."""
    for key in ("readings", "ratings", "all"):
        if key in examples:
            first = str(examples[key]).split()[0]
            return int(first) if first.isdecimal() else None
    numbers = [n for value in examples.values() for n in (value.values() if isinstance(value, Mapping) else [value])]
    return sum(numbers) if numbers and all(isinstance(n, int) for n in numbers) else None
