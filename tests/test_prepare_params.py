"""Params of prepare: every fault is refused with its key and what is allowed."""

import copy
from typing import Any

import pytest

from stm.errors import ParamsError
from stm.params.base import parse_section
from stm.params.prepare import PrepareParams

PARAMS: dict[str, Any] = {
    "seed": 1,
    "splits": {"one": [{"kind": "jsonl", "path": "data/x.jsonl.gz"}], "two": [{"kind": "beir", "path": "beir/nf/"}]},
    "default_instruction": "Find it",
    "max_pairs": 0,
    "max_negatives": 2,
    "warm_up_splits": ["one"],
    "warm_up_pairs": 1,
    "max_overlap": 0.5,
    "tasks": {"dev": {"nf": {"kind": "beir", "path": "nf"}}, "test": {"nf": {"kind": "beir", "path": "nf"}}},
    "max_queries": 0,
    "max_passages": 0,
}


def parse(path: str = "", value: Any = None) -> PrepareParams:
    data = copy.deepcopy(PARAMS)
    inner: Any = data
    *keys, last = path.split(".") if path else ["seed"]
    for key in keys:
        inner = inner[int(key)] if key.isdigit() else inner[key]
    inner[int(last) if last.isdigit() else last] = value if path else 1
    return parse_section(data, PrepareParams, "prepare")


def test_labels_come_from_paths() -> None:
    params = parse()
    assert [source.label for sources in params.splits.values() for source in sources] == ["x", "nf"]
    assert params.instruction_of("one") == "Find it"
    assert parse("instructions", {"one": "Other"}).instruction_of("one") == "Other"


KINDS = "'embedded', 'jsonl', 'csv', 'parquet', 'hub', 'beir', 'corpus'"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("splits.one.0.kind", "xml", rf"splits\.one\.0: .*'xml'.*{KINDS}"),
        ("splits.one.0", {"path": "x"}, r"splits\.one\.0: Unable to extract tag using discriminator 'kind'"),
        ("splits.one.0.ancor", "q", r"splits\.one\.0: no such setting: ancor; there are .*anchor, positive"),
        ("splits.one.0", {"kind": "embedded", "name": "poems"}, r"name: Input should be 'lay_terms', .*given: 'poems'"),
        ("splits.one.0", {"kind": "hub"}, r"splits\.one\.0\.path: Field required"),
        ("splits.one", [], r"the split 'one' has no sources"),
        ("splits", {}, r"prepare\.splits: Dictionary should have at least 1 item"),
        ("splits.Bad name", [{"kind": "beir", "path": "x"}], r"Bad name.*a name has small letters, digits and _"),
        (
            "splits.one",
            [{"kind": "csv", "path": "a/x.csv"}, {"kind": "jsonl", "path": "b/x.jsonl"}],
            "two sources called x",
        ),
        ("instructions", {"three": "x"}, r"instructions names three, but the splits are one, two"),
        ("warm_up_splits", ["three"], r"warm_up_splits names three"),
        ("warm_up_splits", ["one", "one"], r"names a split twice"),
        ("tasks.dev.nf.kind", "hub", r"tasks\.dev\.nf: .*'embedded', 'beir', 'jsonl', 'csv', 'parquet'"),
        ("tasks.test", {}, r"tasks\.test: Dictionary should have at least 1 item"),
        ("tasks.dev.nf.domain", "legal", r"domain: Input should be 'medical' or 'general'"),
        ("max_overlap", 1.0, r"max_overlap: Input should be less than 1"),
        ("max_pairs", -1, r"max_pairs: Input should be greater than or equal to 0 \(given: -1\)"),
        ("max_pair", 3, r"prepare: no such setting: max_pair; there are .*max_pairs"),
    ],
)
def test_faults(path: str, value: Any, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        parse(path, value)
