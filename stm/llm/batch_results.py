"""The results of a finished batch: its files, line by line, and what becomes of each line.

Knows nothing of how a batch was submitted or waited for.
"""

import codecs
import json
from collections.abc import Mapping
from typing import Any

import openai
from openai.types import Batch

from stm.errors import EndpointError
from stm.llm.answers import Failure, Request
from stm.llm.faults import PASSING, FaultError, one_line, read_completion, show_json
from stm.llm.store import AnswerStore, BatchRecord


def read_lines(batch: Batch, client: openai.OpenAI) -> list[dict[str, Any]]:
    """The lines of a finished batch's results and errors.

    What is fewer than the endpoint counts, such as a file that was cut, is fetched once more; then a torn line is a
    request without an answer, and is submitted again. What is no such file, as a page that says that the endpoint is
    being mended, is an `EndpointError`: what was paid for can be had later.
    """
    counts = batch.request_counts
    expected = counts.completed + counts.failed if counts else 0
    lines: list[dict[str, Any]] = []
    for _ in range(2):
        lines = []
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            content = client.files.content(file_id).content.removeprefix(codecs.BOM_UTF8)
            if content.strip() and not content.lstrip().startswith(b"{"):
                raise EndpointError(
                    f"the results of batch {batch.id} cannot be read (they begin with "
                    f"{one_line(content[:80].decode('utf-8', 'replace'), client.api_key)!r}); run the same command to "
                    "fetch them again"
                )
            lines += [line for raw in content.splitlines() if isinstance(line := _parse(raw), dict)]
        if len(lines) >= expected:
            break
    return lines


def _parse(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def take_line(
    line: dict[str, Any], record: BatchRecord, requests: Mapping[str, Request], client: openai.OpenAI,
    store: AnswerStore,
) -> dict[str, Failure]:  # fmt: skip
    """Store the answer of one output line, or return its failure.

    Requests of the batch that nobody asks for any more were paid for too, so their answers are kept.
    """
    key = str(line.get("custom_id"))
    response = line.get("response") if isinstance(line.get("response"), dict) else {}
    status = response.get("status_code") if response else None
    body = response.get("body") if response else None
    if status == 200:
        try:
            answer = read_completion(body, requests.get(key, Request(())), client.api_key)
        except FaultError as fault:
            return {key: Failure(fault.reason, fault.detail)}
        if key in record.requests:
            store.put(record.requests[key], answer)
        return {}
    detail = show_json(line.get("error") or body, client.api_key)
    is_final = isinstance(status, int) and 400 <= status < 500 and status not in PASSING
    return {key: Failure("rejected" if is_final else "server_error", f"HTTP {status}: {detail}")}
