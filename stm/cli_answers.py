"""The commands `stm answers ...`: paid-for LLM answers into a Parquet file, and into the store of another machine.

A thin shell around the answer store; what it imports is answered from the store and not asked for again.
"""

from pathlib import Path
from typing import Annotated

import typer

from stm.stage import guarded

answers = typer.Typer(help="Move paid-for LLM answers between machines.", no_args_is_help=True)


@answers.command("export")
@guarded
def export_answers(file: Annotated[Path, typer.Argument(help="The Parquet file to write.")]) -> None:
    """Write every stored answer to a Parquet file."""
    from stm.errors import DataError
    from stm.llm.store import STORE_FILE, AnswerStore
    from stm.params.base import read_params

    read_params()  # elsewhere than in the project's root, a store would be looked for in vain
    if not STORE_FILE.exists():
        raise DataError(f"no answers to export: {STORE_FILE} does not exist; run a stage that asks an LLM")
    with AnswerStore() as store:
        count = store.export_parquet(file)
    typer.echo(f"{count} answers written to {file}; `stm answers import {file}` takes them in elsewhere")


@answers.command("import")
@guarded
def import_answers(files: Annotated[list[Path], typer.Argument(help="Exported Parquet files.")]) -> None:
    """Add exported answers to the store; their requests are not sent again."""
    from stm.llm.store import AnswerStore
    from stm.params.base import read_params

    read_params()  # elsewhere than in the project's root, a store would be made that no stage reads
    with AnswerStore() as store:
        for file in files:
            before = len(store)
            read = store.import_parquet(file)
            typer.echo(f"{file}: {read} answers, {len(store) - before} of them new")
