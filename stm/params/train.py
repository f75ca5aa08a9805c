"""Params of contrastive training: the sections `warm_up` and `train` have this form."""

from typing import Literal

from pydantic import Field, model_validator

from stm.params.base import Section


class TrainParams(Section):
    """One contrastive LoRA training."""

    rank: int = Field(ge=1, le=1024, description="rank of the LoRA factors on all linear layers")
    alpha: float = Field(gt=0, le=4096, description="LoRA scale: delta = alpha / rank * B @ A")
    learning_rate: float = Field(gt=0, le=1, description="peak learning rate of AdamW")
    warmup_steps: int = Field(ge=0, description="optimizer steps of linear warm-up before the linear decay to 0")
    weight_decay: float = Field(ge=0, le=1, description="decoupled weight decay of AdamW")
    max_grad_norm: float = Field(gt=0, description="gradients are clipped to this L2 norm")
    batch_size: int = Field(
        ge=2, le=65536, description="rows per optimizer step; all their passages are in-batch negatives"
    )
    epochs: int = Field(ge=1, le=1000, description="passes over the rows")
    max_steps: int = Field(ge=0, description="optimizer steps at most; 0: no limit")
    negatives: int = Field(ge=0, le=64, description="hard negatives used per row, the first of the row's list")
    temperature: float = Field(gt=0, le=10, description="divisor of the cosine similarities")
    symmetric: bool = Field(description="also contrast each positive against all queries of the batch, at equal weight")
    instruction_from: Literal["instruction", "pool", "row"] = Field(
        description="query instruction: the split's one, one drawn per row from the split's pool, or the row's own"
    )
    chunk_tokens: int = Field(ge=64, description="padded tokens of one forward pass within a step; bounds the memory")
    cache_gradients: bool = Field(
        description="GradCache: encode each batch twice; a step needs the memory of one chunk, at 1.5 times the cost"
    )
    compile: bool = Field(
        False, description="have torch compile the decoder's layers; needs a C++ compiler and a minute before the start"
    )
    checkpoint_steps: int = Field(ge=1, description="optimizer steps between checkpoints for resuming")
    dev_rows: int = Field(
        0, ge=0, description="rows held out of the training to measure the loss on; the best step is kept; 0: the last"
    )
    dev_steps: int = Field(10, ge=1, description="optimizer steps between two measurements on the held-out rows")
    patience: int = Field(
        0, ge=0, description="measurements in a row without a better one after which the training stops; 0: never stops"
    )
    must_learn: bool = Field(
        False, description="whether a training whose loss ends at chance is an error, so that nothing is built on it"
    )
    seed: int = Field(ge=0, description="seed of the factors, the order of the rows and the drawn instructions")

    @model_validator(mode="after")
    def _check_dev(self) -> "TrainParams":
        if self.patience and not self.dev_rows:
            raise ValueError("patience stops by the loss on held-out rows; set dev_rows, or patience to 0")
        if self.dev_rows == 1:
            raise ValueError("dev_rows is 1; a contrastive loss needs at least 2 rows")
        return self
