"""Prompts of a retriever: an instruction rendered into the text before a query, and the constant text before a passage.

The form in which models carry them: `prompts.json` in an adapter folder, `prompts` of a sentence-transformers folder.
Does not know how instructions are found.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from stm.errors import DataError, ParamsError
from stm.files import read_json, write_json

FILE = "prompts.json"
PASSAGE_PROMPTS = ("document", "passage", "corpus")  # names, in the order in which sentence-transformers looks


@dataclass(frozen=True)
class Prompts:
    """The rendered `query` and `document` prompts, and what the query prompt was made of."""

    query: str
    document: str
    template: str
    instruction: str

    def as_model_prompts(self) -> dict[str, str]:
        """The mapping that sentence-transformers saves; "document" is its name for passages."""
        return {"query": self.query, "document": self.document}


def render(template: str, instruction: str, passage_prompt: str = "") -> Prompts:
    """Render the query prompt; `ParamsError` if the template names something else than `{instruction}`.

    Before a sign of the template's own, a full stop that ends the instruction is left out.
    """
    ends_twice = instruction.endswith(".") and any("{instruction}" + sign in template for sign in ":;,.")
    try:
        query = template.format(instruction=instruction[:-1] if ends_twice else instruction)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ParamsError(f"backbone.query_template {template!r} may hold {{instruction}} only") from error
    return Prompts(query, passage_prompt, template, instruction)


def write_prompts(prompts: Prompts, folder: Path | str) -> None:
    """Write `prompts.json` into a model folder."""
    write_json(Path(folder) / FILE, asdict(prompts))


def read_prompts(folder: Path | str) -> Prompts:
    """Read `prompts.json` of a model folder; `DataError` if it is missing or has other keys."""
    values = read_json(Path(folder) / FILE)
    try:
        return Prompts(**values)
    except TypeError as error:
        raise DataError(f"{Path(folder) / FILE} must have the keys query, document, template, instruction") from error


def read_instruction(path: Path | str) -> tuple[str, list[str]]:
    """Read an instructions file; return the instruction and the pool of alternatives (may be empty)."""
    values = read_json(path)
    if not isinstance(values, dict) or not isinstance(values.get("instruction"), str):
        raise DataError(f"{path} must hold an object with 'instruction' (text) and 'pool' (list of texts)")
    return values["instruction"], [str(item) for item in values.get("pool", [])]


def own_prompts(prompts: Mapping[str, str | None]) -> dict[str, str]:
    """Return the prompts "query" and "document" that sentence-transformers itself would use for the two sides."""
    passage = next((prompts[name] for name in PASSAGE_PROMPTS if name in prompts), "")
    return {"query": prompts.get("query") or "", "document": passage or ""}
