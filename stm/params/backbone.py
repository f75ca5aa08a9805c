"""Params of the `backbone` stage."""

from typing import Annotated, Literal

from pydantic import Field

from stm.params.base import Section

DType = Literal["float32", "bfloat16"]


class PackageSource(Section):
    """A GGUF file inside an installed Python package."""

    kind: Literal["package"]
    package: str = Field(min_length=1, description="distribution name of the package that holds the GGUF file")
    file: str = Field(min_length=1, description="name of the GGUF file inside the package")


class FolderSource(Section):
    """A transformers folder on disk."""

    kind: Literal["folder"]
    path: str = Field(min_length=1, description="folder with config.json, weights as safetensors and a fast tokenizer")


class HubSource(Section):
    """A model of the Hugging Face hub at a pinned revision."""

    kind: Literal["hub"]
    id: str = Field(min_length=1, description="model id on the hub")
    revision: str = Field(
        min_length=1, description="commit of the model repository, 40 hexadecimal digits; a branch may move"
    )


class BackboneParams(Section):
    """How the decoder-only language model becomes the encoder that everything branches from."""

    source: Annotated[PackageSource | FolderSource | HubSource, Field(discriminator="kind")]
    layers: int = Field(ge=0, le=200, description="decoder layers kept, counted from the input; 0 keeps all")
    dtype: DType = Field(description="type of the saved weights")
    bos_token: str | None = Field(
        min_length=1, description="token before every text; null: what the model's tokenizer puts there, if anything"
    )
    max_tokens: int = Field(
        ge=8, le=131072, description="tokens per text, BOS and EOS included; longer texts are truncated"
    )
    query_template: str = Field(description="text before a query; {instruction} stands for the instruction")
    passage_prompt: str = Field(description="constant text before a passage; may be empty")
    instruction: str = Field(
        min_length=1, description="the default retrieval instruction, used until a search finds a better one"
    )
