"""Params of the `prepare` stage: which sources make which split, which tasks measure, and how much of both is kept.

A source is a row of a table, told apart by its `kind`; the same kinds serve as tasks where they hold queries and
judged passages. Knows the names of the embedded corpora, but nothing of how they are read.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, StringConstraints, model_validator

from stm.params.base import SPLIT_NAME, TASK_NAME, Section

EmbeddedName = Literal[
    "lay_terms", "disease_names", "anatomy_names", "vignettes", "questions", "reverse_dictionary", "encyclopedia",
    "cloze", "senses", "hypernyms", "paraphrases",
]  # fmt: skip
EmbeddedTaskName = Literal[
    "med-hpo-lay", "med-mondo-syn", "med-vignette", "med-anatomy", "med-para", "gen-wiki", "gen-wsd", "gen-revdict"
]
SplitName = Annotated[str, StringConstraints(pattern=SPLIT_NAME)]
TaskName = Annotated[str, StringConstraints(pattern=TASK_NAME)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
ASCII = r"^[\x00-\x7f]*$"
Domain = Literal["medical", "general"]


class EmbeddedSource(Section):
    """Pairs made from text that ships inside installed packages."""

    kind: Literal["embedded"]
    name: EmbeddedName = Field(description="Which embedded corpus.")

    @property
    def label(self) -> str:
        """Name of the source in rows and reports."""
        return self.name


class Released(Section):
    """Hard negatives that somebody wrote and released for the rows of a source, aligned by row number."""

    path: Text = Field(description="Hub id of the released negatives, or a local file or folder of the same layout.")
    revision: str = Field("", description="Commit, tag or branch; needed for a hub id, unused for a local path.")
    config: str = Field("", description="Configuration (subset) of the data set; empty for its only one.")
    split: Text = Field("train", description="Split of the data set.")
    index: Text = Field("bmretriever_index", description="Column with the number of the source's row, from 0.")
    text: Text = Field("hard_negative", description="Column that holds the negative.")


class _Named(Section):
    name: str = Field("", description="Name of the source in rows and reports; empty takes it from the path.")
    path: Text = Field(description="Path from the project's root, or a hub id where the kind is hub.")

    @property
    def label(self) -> str:
        """Name of the source in rows and reports."""
        return self.name or self.path.rstrip("/").rsplit("/", 1)[-1].split(".", 1)[0]


class _Columns(_Named):
    anchor: Text = Field("anchor", description="Column that holds the query.")
    positive: Text = Field("positive", description="Column that holds the passage which answers it.")
    negatives: str = Field(
        "", description="Column of hard negatives, one text or a list of texts per row; empty for none."
    )
    instruction: str = Field("", description="Column of the row's own instruction; empty for none.")
    concept: str = Field(
        "", description="Column whose equal values mark rows that never are each other's negatives; empty: none."
    )


class _Csv(Section):
    separator: str = Field(
        ",", min_length=1, max_length=1, pattern=ASCII, description="Character between the columns of a csv file."
    )
    quote: str = Field(
        '"',
        max_length=1,
        pattern=ASCII,
        description="Character around texts of a csv file that hold a separator or a line break; empty: none.",
    )


class _File(_Columns, _Csv):
    kind: Literal["jsonl", "csv", "parquet"]


class _Mixture(_Columns):
    released: Released | None = Field(
        None, description="Released hard negatives of the rows, marked as synthetic; null for none."
    )
    only_instructions: list[Text] = Field(
        default_factory=list,
        description="Texts of the instruction column whose rows are taken, so that one mixture makes several splits; "
        "empty takes all.",
    )

    @model_validator(mode="after")
    def _check_selection(self) -> "_Mixture":
        if self.only_instructions and not self.instruction:
            raise ValueError("only_instructions needs `instruction`, the column that it selects by")
        return self


class FileSource(_File, _Mixture):
    """Pairs of a local file, gzipped or not."""


class HubSource(_Mixture):
    """Pairs of a data set of the Hugging Face hub, or of a local folder of the same layout."""

    kind: Literal["hub"]
    revision: str = Field("", description="Commit, tag or branch; needed for a hub id, unused for a local path.")
    config: str = Field("", description="Configuration (subset) of the data set; empty for its only one.")
    split: Text = Field("train", description="Split of the data set.")


class BeirSource(Section):
    """Queries and their relevant passages in a BEIR folder."""

    kind: Literal["beir"]
    name: str = Field("", description="Name of the source in rows and reports; empty takes the folder's.")
    path: Text = Field(description="Folder with corpus.jsonl, queries.jsonl and qrels/.")
    split: Text = Field("train", description="Which qrels/<split>.tsv makes the pairs.")

    @property
    def label(self) -> str:
        """Name of the source in rows and reports."""
        return self.name or self.path.rstrip("/").rsplit("/", 1)[-1]


class CorpusSource(_Named, _Csv):
    """Passages without queries. Each gets a stand-in: its title, or its beginning; an LLM can write better ones."""

    kind: Literal["corpus"]
    text: Text = Field("text", description="Column that holds the passage.")
    title: str = Field("", description="Column that holds its title; empty for none.")


class EmbeddedTask(Section):
    """A task made from the held-out part of the embedded corpora."""

    kind: Literal["embedded"]
    name: EmbeddedTaskName | None = Field(
        None, description="Which embedded task; left out, the task's own key names it."
    )


class BeirTask(Section):
    """A task in a BEIR folder."""

    kind: Literal["beir"]
    path: Text = Field(description="Folder with corpus.jsonl, queries.jsonl and qrels/.")
    split: str = Field(
        "", description="Which qrels/<split>.tsv judges; empty takes dev for dev tasks and test for test tasks."
    )
    domain: Domain = Field("general", description="Which average the task counts in.")
    open_corpus: bool = Field(False, description="Whether training may use the task's passages, but never its queries.")
    ignore_identical_ids: bool = Field(
        False, description="Whether the passage with the query's own id does not count, as in ArguAna."
    )


class FileTask(_File):
    """A task made of the pairs of a local file: every distinct positive (and negative) is a passage."""

    domain: Domain = Field("general", description="Which average the task counts in.")
    open_corpus: bool = Field(False, description="Whether training may use the task's passages, but never its queries.")


Source = Annotated[EmbeddedSource | FileSource | HubSource | BeirSource | CorpusSource, Field(discriminator="kind")]
TaskSource = Annotated[EmbeddedTask | BeirTask | FileTask, Field(discriminator="kind")]


class TaskTable(Section):
    """The tasks that steer the search (dev) and those that measure its result (test)."""

    dev: dict[TaskName, TaskSource] = Field(
        min_length=1, description="Tasks by name for instruction, model and merge search."
    )
    test: dict[TaskName, TaskSource] = Field(min_length=1, description="Tasks by name for the final evaluation.")

    @model_validator(mode="after")
    def _names_are_no_averages(self) -> "TaskTable":
        for name in (*self.dev, *self.test):
            if name in ("all", *get_args(Domain)):
                raise ValueError(f"a task is called {name!r}, as an average is; choose another name")
        return self


class PrepareParams(Section):
    """The section `prepare` of params.yaml."""

    seed: int = Field(ge=0, lt=2**32, description="Seed of which pairs, queries and passages are drawn under the caps.")
    splits: dict[SplitName, list[Source]] = Field(min_length=1, description="Sources of each training split.")
    default_instruction: Text = Field(
        description="Retrieval instruction of the splits that `instructions` does not name."
    )
    instructions: dict[SplitName, Text] = Field(default_factory=dict, description="Retrieval instruction per split.")
    max_pairs: int = Field(ge=0, description="Pairs kept per split, spread evenly over its sources; 0 keeps all.")
    max_negatives: int = Field(ge=0, description="Given hard negatives kept per pair; 0 keeps none.")
    warm_up_splits: list[SplitName] = Field(
        min_length=1, description="Splits that the warm-up draws from in equal shares."
    )
    warm_up_pairs: int = Field(ge=1, description="Pairs of the warm-up in all.")
    max_overlap: float = Field(
        ge=0,
        lt=1,
        description="Part of the shorter text's 8-grams; training and evaluation texts that share more are the same.",
    )
    decontaminate: bool = Field(
        True, description="Whether such training rows and negatives are removed; false only counts them."
    )
    tasks: TaskTable = Field(description="Evaluation tasks.")
    max_queries: int = Field(ge=0, description="Queries kept per task; 0 keeps all.")
    max_passages: int = Field(ge=0, description="Passages kept per task, all judged ones among them; 0 keeps all.")

    @model_validator(mode="before")
    @classmethod
    def _name_empty_splits(cls, data: Any) -> Any:
        splits = data.get("splits") if isinstance(data, dict) else None
        for name, sources in splits.items() if isinstance(splits, dict) else ():
            if not sources:
                raise ValueError(f"the split {name!r} has no sources; name at least one, or remove the split")
        return data

    @model_validator(mode="after")
    def _check_references(self) -> "PrepareParams":
        for field, names in (("instructions", list(self.instructions)), ("warm_up_splits", self.warm_up_splits)):
            unknown = sorted(set(names) - set(self.splits))
            if unknown:
                raise ValueError(f"{field} names {', '.join(unknown)}, but the splits are {', '.join(self.splits)}")
        if len(set(self.warm_up_splits)) != len(self.warm_up_splits):
            raise ValueError("warm_up_splits names a split twice; name each once")
        for split, sources in self.splits.items():
            labels = [source.label for source in sources]
            twice = sorted({label for label in labels if labels.count(label) > 1})
            if twice:
                raise ValueError(
                    f"the split {split!r} has two sources called {', '.join(twice)}; give one another `name`"
                )
        return self

    def instruction_of(self, split: str) -> str:
        """The seed instruction of a split."""
        return self.instructions.get(split, self.default_instruction)
