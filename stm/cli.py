"""The command line `stm`: try a retriever, check the machine, work on the model registry.

A thin shell: it reads arguments and params, calls one function and shows the result. Heavy libraries are imported
inside the commands.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from stm.stage import guarded
from stm.cli_answers import answers
from stm.errors import DataError, ParamsError

if TYPE_CHECKING:
    from stm.params.promote import PromoteParams
    from stm.promote.decision import Outcome
    from stm.promote.registry import Registry

app = typer.Typer(
    help="Build, try, promote and roll back merged retrievers.", no_args_is_help=True, add_completion=False
)
app.add_typer(answers, name="answers")
WIDTH_WITHOUT_TERMINAL = 160
MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[red]missing[/]"}


def _console() -> Console:
    """A console that shows texts as they are: rich would make a picture of `:a:` in an id."""
    console = Console(highlight=False, emoji=False)
    return console if console.is_terminal else Console(width=WIDTH_WITHOUT_TERMINAL, highlight=False, emoji=False)


def _table(*names: str) -> Table:
    """An empty table that breaks long words where the terminal is narrow; rich would cut them off."""
    columns = [Column(name, overflow="fold") for name in names]
    return Table(*columns, box=None, pad_edge=False, collapse_padding=True)


def _params() -> "PromoteParams":
    from stm.params.base import load_section
    from stm.params.promote import PromoteParams

    return load_section("promote", PromoteParams)


def _rounded(score: str | None) -> str:
    try:
        return f"{float(score):.3f}" if score else "-"
    except ValueError:  # a tag that somebody wrote by hand
        return "?"


def _registry() -> "Registry":
    from stm.promote.registry import Registry

    params = _params()
    return Registry.open(params.tracking_uri, params.registered_model)


@app.command()
@guarded
def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    champion: Annotated[
        bool, typer.Option("--champion", help="Use the registered champion, not models/merged.")
    ] = False,
    corpus: Annotated[
        Path | None,
        typer.Option(
            help="A .jsonl, .csv or .parquet file, gzipped or not, a BEIR folder, or a text file with one passage per "
            "line."
        ),
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of the corpus that holds the passages.")] = "text",
    title_column: Annotated[str, typer.Option(help="Column with their titles, where there are some.")] = "title",
    id_column: Annotated[str, typer.Option(help="Column with their ids; without it, the number of the row.")] = "_id",
    task: Annotated[str, typer.Option(help="The test task whose corpus is searched; by default, a medical one.")] = "",
    k: Annotated[int, typer.Option("--k", "-k", min=1, max=1000, help="Number of passages.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per passage.")] = False,
) -> None:
    """Try the merged retriever on a test task's corpus or on your own."""
    from stm.params.base import MERGED, load_section
    from stm.params.evaluate import EvaluateParams
    from stm.search import Columns, champion_folder, read_corpus, read_task_corpus, search
    from stm.synthesize.prompt import strip_controls

    model = Path(MERGED)
    if champion:
        registry = _registry()
        model = champion_folder(registry.require("champion"), registry.name)
    columns = Columns(text_column, title_column, id_column)
    passages = read_corpus(corpus, columns) if corpus else read_task_corpus(task)
    console = _console()
    for hit in search(model, passages, query, k, load_section("evaluate", EvaluateParams).store_megabytes):
        if as_json:
            typer.echo(json.dumps(asdict(hit), ensure_ascii=False))
            continue
        key, title, text = (escape(strip_controls(part)) for part in (hit.passage_id, hit.title, hit.text[:240]))
        console.print(f"{hit.position:>3}  {hit.score:.3f}  [bold]{key}[/]  {title}")
        console.print(f"            {text}")


@app.command()
@guarded
def doctor(
    cache: Annotated[bool, typer.Option("--cache", help="Only look for damaged files in DVC's cache.")] = False,
) -> None:
    """Check this machine and checkout; say what is missing and what to do. Exits with 1 if that is essential."""
    from stm.doctor.examine import examine

    if cache:
        _check_cache()
        return
    findings = examine(Path())
    table = _table("check", "", "found", "next step")
    for finding in findings:
        table.add_row(finding.name, MARKS[finding.state], escape(finding.found), escape(finding.next_step))
    _console().print(table)
    missing = [finding.name for finding in findings if finding.state == "missing"]
    typer.echo(f"missing: {', '.join(missing)}" if missing else "everything needed is here")
    if missing:
        raise typer.Exit(1)


def _check_cache() -> None:
    from stm.cache import MENDING, cache_folder, examine_cache

    folder = cache_folder(Path())
    state = examine_cache(folder)
    if state.leftovers:
        size = sum(path.stat().st_size for path in state.leftovers) / 1e6
        names = "\n".join(str(path) for path in state.leftovers)
        typer.echo(
            f"note: interrupted runs left copies that nothing refers to ({size:.1f} MB); delete them while no dvc "
            f"runs:\n{names}"
        )
    if state.damaged:
        names = "\n".join(str(path) for path in state.damaged)
        raise DataError(f"{len(state.damaged)} files in the cache are damaged:\n{names}\n{MENDING}")
    if not state.count:
        typer.echo(f"note: {folder} holds no files, so there was nothing to check; `dvc pull` or `make repro` fills it")
    else:
        typer.echo(f"{state.count} files in {folder} were checked, and each has the bytes that its name promises")


@app.command()
@guarded
def use(profile: Annotated[str, typer.Argument(help="Name of a file in profiles/, without .yaml.")]) -> None:
    """Apply a profile to params.yaml: what it names changes, everything else and all comments stay."""
    from stm.profiles import use_profile

    kept = use_profile(profile)
    if kept is None:
        typer.echo(f"params.yaml has all of profile {profile!r} already; nothing was written")
        return
    typer.echo(
        f"params.yaml has taken over profile {profile!r}; what {profile} does not set is as before, and the former "
        f"file is {kept}. `git diff params.yaml` shows what is not committed, `dvc repro check` says whether "
        "anything is missing, and `dvc repro` runs it"
    )


@app.command()
@guarded
def promote(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what the gates say; change nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Make it the champion even if gates hold it back.")] = False,
    reason: Annotated[str, typer.Option(help="Why; required with --force, and recorded.")] = "",
) -> None:
    """Publish the reports and the merged model to MLflow, and make it the champion if the gates let it through."""
    from stm.promote.actor import current_actor
    from stm.promote.promotion import preview, promote

    if force != bool(reason.strip()):
        raise ParamsError(
            '--force and --reason go together: stm promote --force --reason "why the gates are wrong here"'
        )
    params = _params()
    if dry_run:
        _show(preview(params, force=reason.strip()))
    else:
        _show(promote(params, current_actor(), force=reason.strip()))


def _show(outcome: "Outcome") -> None:
    table = _table("gate", "", "detail")
    for verdict in outcome.verdicts:
        mark = "[green]passed[/]" if verdict.passed else ("[red]missed[/]" if verdict.required else "[yellow]noted[/]")
        table.add_row(escape(verdict.name), mark, escape(verdict.detail))
    _console().print(table)
    typer.echo(outcome.line())


@app.command()
@guarded
def rollback(
    version: Annotated[int | None, typer.Argument(help="An earlier champion; by default, the previous one.")] = None,
    reason: Annotated[str, typer.Option(help="Why; recorded in the history.")] = "no reason given",
    other_backbone: Annotated[
        bool, typer.Option("--other-backbone", help="Allow another backbone: indexes must be rebuilt.")
    ] = False,
) -> None:
    """Make an earlier champion the champion again."""
    from stm.promote.actor import current_actor
    from stm.promote.history import roll_back
    from stm.promote.promotion import only_one

    registry = _registry()
    with only_one(Path()):
        entry = roll_back(registry, version, current_actor(), reason, other_backbone=other_backbone)
    before = f" (before: version {entry.previous})" if entry.previous else ""
    typer.echo(f"version {entry.version} is the champion again{before}")


@app.command()
@guarded
def models(
    history: Annotated[bool, typer.Option("--history", help="Show who moved the champion, when and why.")] = False,
) -> None:
    """List the registered versions with aliases, scores and dates."""
    from stm.promote.history import read_history

    registry = _registry()
    if history:
        table = _table("what", "version", "before", "when", "who", "why")
        if not (entries := read_history(registry)):
            typer.echo("there has been no champion yet; `stm models` lists the versions, `stm promote` judges")
            return
        for entry in entries:
            table.add_row(
                entry.kind,
                str(entry.version),
                str(entry.previous or "-"),
                entry.when,
                escape(entry.who),
                escape(entry.why),
            )
    else:
        table = _table("version", "alias", "nDCG@10", "medical", "general", "method", "decision", "git", "created")
        for item in registry.versions():
            tags = item.tags
            scores = [_rounded(tags.get(f"ndcg_at_10.{name}")) for name in ("all", "medical", "general")]
            dirty = {"true": "*", "unknown": "?"}.get(tags.get("git.dirty", ""), "")
            git = tags.get("git.revision", "-")[:8] + dirty
            created = item.created.strftime("%Y-%m-%d %H:%M")
            method, decision = tags.get("merge.method", "-"), tags.get("decision", "-")
            table.add_row(str(item.number), ", ".join(item.aliases), *scores, escape(method), decision, git, created)
    _console().print(table)


@app.command()
@guarded
def reproduce(
    version: Annotated[int, typer.Argument(help="A registered version.")],
    folder: Annotated[Path | None, typer.Option(help="Where to put it; by default, .stm/reproduce/VERSION.")] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Run the pipeline anew up to merge, with the LLM answers of that time.")
    ] = False,
) -> None:
    """Check out the state that a version was made from, pull its data, and compare the model byte by byte."""
    from stm.promote.reproduce import reproduce

    registry = _registry()
    found = reproduce(registry.version(version), Path(), folder or Path(f".stm/reproduce/{version}"), rebuild=rebuild)
    typer.echo("\n".join(found.lines()))
    if not found.is_same:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
