"""Profiles change what they name, keep the comments, and never leave params that would be refused."""

from pathlib import Path

import pytest
import yaml

from stm.errors import ParamsError
from stm.params.all import load_params
from stm.profiles import apply_profile, use_profile
from tests.closure import ROOT

PROFILES = sorted((ROOT / "profiles").glob("*.yaml"))


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_every_shipped_profile_applies_to_the_shipped_params(profile: Path, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())
    use_profile(profile.stem, ROOT / "profiles", path)
    assert load_params(path) != load_params(ROOT / "params.yaml")
    assert "# optimizer steps at most" in path.read_text()


def test_lines_that_a_profile_does_not_name_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("backbone: {layers: 3}")
    former = (ROOT / "params.yaml").read_text()
    text = apply_profile(tmp_path / "p.yaml", ROOT / "params.yaml")
    changed = [line for line, old in zip(text.splitlines(), former.splitlines(), strict=True) if line != old]
    assert [line.split("#")[0].strip() for line in changed] == ["layers: 3"]


def test_what_was_filled_in_is_kept_beside(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    filled = (ROOT / "params.yaml").read_text().replace("max_pairs: 256 ", "max_pairs: 77 ")
    path.write_text(filled)
    (tmp_path / "p.yaml").write_text("prepare: {max_pairs: 5}")
    kept = use_profile("p", tmp_path, path)
    assert kept == tmp_path / ".stm" / "params.yaml.before"
    assert kept.read_text() == filled
    assert load_params(path).prepare.max_pairs == 5
    assert use_profile("p", tmp_path, path) is None  # it changes nothing more, and the copy stays
    assert kept.read_text() == filled


def test_outside_of_a_project_it_is_said_where_to_run_it(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("prepare: {max_pairs: 5}")
    with pytest.raises(ParamsError, match=r"cannot read .*params\.yaml: No such file .*; run from the project's root"):
        use_profile("p", tmp_path, tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "p.yaml holds no settings"), (b"- merge\n", "p.yaml holds no settings"),
        (b"label: caf\xe9", "p.yaml is not UTF-8: .* at byte 10; save it as UTF-8"),
        (b"day: 2024-13-01", "p.yaml is not valid YAML"), (b"replace: 3", "replace is 3; list dotted keys"),
        (b"replace: [{a: b}]", "list dotted keys"), (b"extends: deep", "extends is 'deep'; list names of profiles"),
    ],
)  # fmt: skip
def test_a_profile_that_is_none_is_one_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "p.yaml").write_bytes(content)
    with pytest.raises(ParamsError, match=message):
        apply_profile(tmp_path / "p.yaml", ROOT / "params.yaml")


def test_params_that_are_not_utf8_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(b"label: caf\xe9")
    with pytest.raises(ParamsError, match=r"params\.yaml is not UTF-8: .* at byte 10; save it as UTF-8"):
        load_params(path)
    path.write_text("day: 2024-13-01")
    with pytest.raises(ParamsError, match=r"params\.yaml is not valid YAML: month must be in"):
        load_params(path)


def test_mappings_are_merged_or_replaced_as_the_profile_says(tmp_path: Path) -> None:
    profile = tmp_path / "p.yaml"
    profile.write_text(
        "replace: [backbone.source]\nfiles: {own: {path: x, read_by: backbone}}\n"
        "backbone: {layers: 3, source: {kind: folder, path: x}}\n"
    )
    changed = yaml.safe_load(apply_profile(profile, ROOT / "params.yaml"))["backbone"]
    assert changed["source"] == {"kind": "folder", "path": "x"}
    assert changed["layers"] == 3
    assert changed["max_tokens"] == yaml.safe_load((ROOT / "params.yaml").read_text())["backbone"]["max_tokens"]


def test_what_a_profile_extends_is_applied_before_it(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("backbone: {layers: 3, max_tokens: 32}\nprepare: {seed: 5}\n")
    (tmp_path / "two.yaml").write_text("prepare: {max_pairs: 9}\n")
    (tmp_path / "p.yaml").write_text("extends: [one, two]\nbackbone: {layers: 4}\n")
    changed = yaml.safe_load(apply_profile(tmp_path / "p.yaml", ROOT / "params.yaml"))
    assert (changed["backbone"]["layers"], changed["backbone"]["max_tokens"]) == (4, 32)
    assert (changed["prepare"]["seed"], changed["prepare"]["max_pairs"]) == (5, 9)
    (tmp_path / "two.yaml").write_text("extends: [p]\n")
    with pytest.raises(ParamsError, match=r"p\.yaml extends itself, over .*two\.yaml"):
        apply_profile(tmp_path / "p.yaml", ROOT / "params.yaml")
    (tmp_path / "two.yaml").unlink()
    with pytest.raises(ParamsError, match=r"cannot read .*two\.yaml.*; files there: one, p"):
        apply_profile(tmp_path / "p.yaml", ROOT / "params.yaml")


def test_a_profile_that_would_break_the_params_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "bad.yaml").write_text("merge: {densty: 1}\n")
    with pytest.raises(ParamsError, match=r"merge: no such setting: densty") as caught:
        use_profile("bad", tmp_path, path)
    assert str(caught.value).startswith("with profile 'bad' params.yaml would be wrong, so nothing was written;")
    assert "commit yours before you take that one back" in str(caught.value)
    assert path.read_text() == (ROOT / "params.yaml").read_text()
    with pytest.raises(ParamsError, match="files there: bad, params"):
        use_profile("none", tmp_path, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("synthesize_splits: [nowhere]", "synthesize_splits names .'nowhere'.; the table splits has"),
        ("search_prompts_splits: [nlu, nlu]", "search_prompts_splits names a split twice"),
        ("synthesize_splits: []", "med_real-shn.negatives is 'synthetic'; add its split 'med_real' to synthesize_sp"),
        ("train: {instruction_from: pool}", "only experts have a pool; say `instruction: pool` in a row of experts"),
        ('backbone: {query_template: "query: "}', "query_template has no {instruction}, so there is nothing to search"),
        (
            "search_prompts: {pool_size: 0}\nexperts: {nlu-pool: {split: nlu, negatives: mined, instruction: pool}}",
            "experts.nlu-pool.instruction is 'pool', and search_prompts.pool_size is 0; raise it",
        ),
        ("search_prompts_splits: []", "po.instruction is 'searched'; add its split 'med_synth' to search_prompts_sp"),
    ],
)
def test_tables_that_disagree_are_refused_with_the_row_and_the_next_step(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ParamsError, match=message):
        apply_profile(tmp_path / "p.yaml", ROOT / "params.yaml")
