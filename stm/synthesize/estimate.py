"""What the stage `synthesize` may cost, said before its first call.

Requests and params go in, one line of text comes out. Token counts are rough; the budget counts the real ones.
"""

from collections.abc import Iterable

import polars as pl

from stm.llm.answers import Budget, Request, estimate_prompt, estimate_tokens
from stm.params.synthesize import SynthesizeParams
from stm.synthesize.judge import PROMPT
from stm.synthesize.queries import plan_queries


def describe_cost(requests: Iterable[Request], rows: pl.DataFrame, params: SynthesizeParams) -> str:
    """Requests, tokens and money of the first attempts; the judge and the written queries are in it."""
    endpoint, prompts = params.endpoint, [estimate_prompt(request.messages) for request in requests]
    count, tokens_in = len(prompts), sum(prompts)
    planned = plan_queries(rows, params.queries, params.max_passage_chars, params.prompt)
    asked = [request for *_, request in planned]
    if count:  # each written query may become a row that is asked for too
        room = params.rows - rows.height if params.rows else len(asked)
        more = min(len(asked), max(0, room))
        tokens_in, count = tokens_in * (count + more) // count, count + more
    tokens_out = count * endpoint.max_tokens
    if params.validation.judge:
        tokens_in += count * (estimate_tokens(PROMPT) + endpoint.max_tokens)
        tokens_out += count * endpoint.max_tokens
    tokens_in += sum(estimate_prompt(request.messages) for request in asked)
    tokens_out += len(asked) * params.queries.max_tokens
    cost = Budget.of(params).price(tokens_in, tokens_out)
    price = f", up to {cost:.4g} money units" if cost else ""
    queries = f" and {len(asked)} queries" if asked else ""
    again = f"refused rows are asked again up to {params.max_regenerations} times"
    return f"{count} rows{queries}, about {tokens_in} prompt and up to {tokens_out} answer tokens{price}; {again}"
