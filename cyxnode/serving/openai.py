"""What the OpenAI API asks, put as what an engine is asked: options to Sampling, prompts to tokens. Pure."""

import base64
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np

from cyxcore.llm.requests import Sampling
from cyxcore.llm.requests import TokenLogprob as TokenFound
from cyxnet import openai as o
from cyxnode.serving.asgi import Refused, bad

T = TypeVar("T")
Array = np.ndarray[Any, Any]
DEFAULT_COMPLETION_TOKENS = 16  # as the API has it
_UNKNOWN = re.compile(r"unknown field `([^`]+)`")
_MISSING = re.compile(r"missing required field `([^`]+)`")
_PLACE = re.compile(r" - at `\$\.?([^`]*)`")


def decoded(kind: type[T], body: bytes) -> T:
    """Raises Refused, which names the parameter at fault."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise undecoded(error, body) from None


def undecoded(error: Exception, body: bytes) -> Refused:
    """What is said of a body that is no such request, with the parameter at fault."""
    if not body.strip():
        return Refused("bad_message", "expected a JSON object, got an empty body", 400)
    said = str(error)[:500]
    place, unknown, missing = _PLACE.search(said), _UNKNOWN.search(said), _MISSING.search(said)
    name = unknown or missing
    param = ".".join(part for part in (place[1] if place else "", name[1] if name else "") if part)
    if unknown:
        said = f"{param}: there is no such option here, and none is dropped in silence; leave it out"
    elif param == "model":
        said += "; GET /v1/models names the one that is served"
    return Refused("bad_message", said, 400, param or None)


def refuse_other_model(asked: str, name: str) -> None:
    if asked != name:
        raise Refused("model_not_found", f"expected the model {name!r}, got {asked!r}", 404, "model")


def sampling(request: o.ChatRequest | o.CompletionRequest, seed: int) -> Sampling:
    """Raises SpecError for what an engine does not take. seed: where the request has none."""
    if request.stream_options and not request.stream:
        raise bad("stream_options: expected stream: true beside it", "stream_options")
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    wanted: dict[str, Any] = {
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "min_p": request.min_p,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "repetition_penalty": request.repetition_penalty,
    }
    if isinstance(request, o.ChatRequest):
        if request.max_completion_tokens is not None:
            if request.max_tokens is not None:
                raise bad("expected max_tokens or max_completion_tokens, got both", "max_tokens")
            wanted["max_tokens"] = request.max_completion_tokens
        if request.top_logprobs is not None and not request.logprobs:
            raise bad("top_logprobs: expected logprobs: true beside it", "top_logprobs")
        wanted["logprobs"] = (request.top_logprobs or 0) if request.logprobs else None
    else:
        wanted["max_tokens"] = request.max_tokens or DEFAULT_COMPLETION_TOKENS
        wanted["logprobs"] = request.logprobs
    given = {name: value for name, value in wanted.items() if value is not None}
    return Sampling(
        **given,
        stop=tuple(stop),
        seed=seed if request.seed is None else request.seed,
        logit_bias={_token(name): bias for name, bias in (request.logit_bias or {}).items()},
    )


def _token(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise bad(f"logit_bias: expected the numbers of tokens, got {text[:40]!r}", "logit_bias")
    return int(text)


def refuse_dishonourable(request: o.ChatRequest | o.CompletionRequest) -> None:
    """Raises Refused for an option whose value here would change nothing, or not what it says."""
    if isinstance(request, o.CompletionRequest):
        if request.suffix:
            raise bad("suffix: text is only written onwards; leave it out", "suffix")
        if request.best_of not in (None, request.n or 1):
            raise bad("best_of: expected the same as n", "best_of")
        if request.echo and request.logprobs is not None:
            raise bad("echo: the prompt's own probabilities are not computed; leave out logprobs or echo", "echo")
        return
    if request.response_format and request.response_format.type != "text":
        raise bad(f"response_format: expected text, got {request.response_format.type[:40]!r}", "response_format")
    if request.tool_choice not in (None, "auto", "none"):
        raise bad("tool_choice: expected auto or none: a call cannot be forced", "tool_choice")
    if request.parallel_tool_calls is False:
        raise bad("parallel_tool_calls: how many calls a model makes cannot be held down", "parallel_tool_calls")
    if request.store:
        raise bad("store: nothing is stored", "store")


def messages(request: o.ChatRequest) -> list[dict[str, Any]]:
    """The conversation as chat templates take it. Raises Refused for content that is no text."""
    return [_message(message, f"messages[{place}]") for place, message in enumerate(request.messages)]


def _message(message: o.Message, where: str) -> dict[str, Any]:
    content = message.content
    if isinstance(content, list):
        for part in content:
            if part.type != "text":
                raise bad(f"{where}: expected content of type text, got {part.type[:40]!r}", f"{where}.content")
        content = "".join(part.text for part in content)
    if content is None and not message.tool_calls:
        raise bad(f"{where}: expected content", f"{where}.content")
    if message.role == "tool" and not message.tool_call_id:
        raise bad(f"{where}: expected tool_call_id with the role tool", f"{where}.tool_call_id")
    if message.tool_calls and message.role != "assistant":
        raise bad(f"{where}: expected tool_calls of the role assistant only", f"{where}.tool_calls")
    said = msgspec.to_builtins(message) | {"content": content}
    said["role"] = "system" if message.role == "developer" else message.role
    for call in said.get("tool_calls") or []:
        call["function"]["arguments"] = _arguments(call["function"]["arguments"], where)
    return {name: value for name, value in said.items() if value is not None or name == "content"}


def _arguments(text: str, where: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise bad(f"{where}: expected arguments that are JSON: {error}"[:300], f"{where}.tool_calls") from None


def prompts(given: str | Sequence[Any], param: str, kind: type = int) -> list[str | list[Any]]:
    """One prompt or several: each text, or tokens (numbers of `kind`). Raises Refused."""
    if isinstance(given, str):
        return [given]
    if given and all(isinstance(each, int | float) for each in given):
        return [list(given)]
    if not given or not (all(isinstance(each, str) for each in given) or all(isinstance(each, list) for each in given)):
        raise bad(f"{param}: expected text, tokens, or a list of either", param)
    return list(given)


# -- answers ------------------------------------------------------------------------------------------


def text_of(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")


def chat_logprobs(found: Sequence[TokenFound]) -> o.ChatLogprobs:
    return o.ChatLogprobs(
        content=[
            o.TokenLogprob(
                token=text_of(each.piece),
                logprob=each.logprob,
                bytes=list(each.piece),
                top_logprobs=[
                    o.TopLogprob(token=text_of(top.piece), logprob=top.logprob, bytes=list(top.piece))
                    for top in each.top
                ],
            )
            for each in found
        ]
    )


def completion_logprobs(found: Sequence[TokenFound], offset: int) -> tuple[o.CompletionLogprobs, int]:
    """offset: of the first token in the text; returns that of the next too."""
    said = o.CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for each in found:
        text = text_of(each.piece)
        said.tokens.append(text)
        said.token_logprobs.append(each.logprob)
        said.top_logprobs.append({text_of(top.piece): top.logprob for top in each.top})
        said.text_offset.append(offset)
        offset += len(text)
    return said, offset


def embedding_list(request: o.EmbeddingsRequest, vectors: Array, tokens: int) -> o.EmbeddingList:
    """vectors: (count, features) float32. Raises Refused where `dimensions` wants another number of features."""
    if request.dimensions not in (None, vectors.shape[1]):
        said = f"dimensions: the model's embeddings have {vectors.shape[1]}, got {request.dimensions}"
        raise bad(said, "dimensions")
    as_text = request.encoding_format == "base64"
    data = [
        o.Embedding(
            index=place,
            embedding=base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_text else vector.tolist(),
        )
        for place, vector in enumerate(vectors)
    ]
    usage = o.Usage(prompt_tokens=tokens, total_tokens=tokens)
    return o.EmbeddingList(data=data, model=request.model, usage=usage)
