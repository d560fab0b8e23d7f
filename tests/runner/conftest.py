"""What the tests of the report and of the README share: one small folder of papers."""

from pathlib import Path

import pytest
from executed_notebooks import fill


@pytest.fixture
def papers(tmp_path: Path) -> Path:
    claims = "- {id: O2.1, experiment: O2}\n- {id: O2.2, experiment: O2}\n- {id: O3.1, experiment: O3}\n"
    return fill(tmp_path / "papers", {"oarf/paper.yaml": "title: The OARF | suite\n", "oarf/claims.yaml": claims})
