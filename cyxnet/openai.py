"""The OpenAI API as a served model speaks it: its requests and answers, one Struct each.

Unknown fields are refused, so that no option is dropped in silence; what is known and cannot be honoured is refused by
name in cyxnode/serving. Names and meanings are those of platform.openai.com/docs/api-reference; top_k, min_p and
repetition_penalty are those that other servers have beside them.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from cyxnet.messages import Request

MOST_MESSAGES = 10_000
MOST_CHOICES = 8
Model = Annotated[str, Meta(min_length=1, max_length=200)]
Count = Annotated[int, Meta(ge=1, le=2**31)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
FinishReason = Literal["stop", "length"]


class StreamOptions(Request, kw_only=True, frozen=True):
    include_usage: bool = False


class Part(Struct, kw_only=True, frozen=True):
    """A piece of a message's content. Only text is taken."""

    type: str
    text: str = ""


class FunctionCall(Request, kw_only=True, frozen=True):
    """arguments: JSON in a string."""

    name: str
    arguments: str


class ToolCall(Request, kw_only=True, frozen=True):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class Message(Request, kw_only=True, frozen=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None


class ResponseFormat(Struct, kw_only=True, frozen=True):
    type: str


class Choosing(Request, kw_only=True, frozen=True):
    """How tokens are chosen, and what nothing depends on (user, metadata, store): alike in both kinds of request."""

    model: Model
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Seed | None = None
    n: Annotated[int, Meta(ge=1, le=MOST_CHOICES)] | None = None
    stop: str | list[str] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    user: str | None = None


class ChatRequest(Choosing, kw_only=True, frozen=True):
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None


class CompletionRequest(Choosing, kw_only=True, frozen=True):
    """prompt: text, tokens, or a list of either."""

    prompt: str | list[str | int | list[int]]
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


class EmbeddingsRequest(Request, kw_only=True, frozen=True):
    """input: text, tokens, or a list of either."""

    model: Model
    input: str | list[str | float | list[float]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


# -- answers ------------------------------------------------------------------------------------------


class ModelObject(Struct, kw_only=True):
    """created: in Unix seconds."""

    id: str
    created: int
    owned_by: str = "cyx"
    object: str = "model"


class ModelList(Struct, kw_only=True):
    data: list[ModelObject]
    object: str = "list"


class CachedTokens(Struct, kw_only=True):
    cached_tokens: int


class Usage(Struct, kw_only=True, omit_defaults=True):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int | None = None
    prompt_tokens_details: CachedTokens | None = None


class TopLogprob(Struct, kw_only=True):
    """bytes: what the token stands for; token: those as text, where they are some."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Struct, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, kw_only=True):
    content: list[TokenLogprob]
    refusal: None = None


class ChatAnswer(Struct, kw_only=True):
    content: str
    role: str = "assistant"
    refusal: None = None


class ChatChoice(Struct, kw_only=True):
    index: int
    message: ChatAnswer
    finish_reason: str
    logprobs: ChatLogprobs | None = None


class ChatCompletion(Struct, kw_only=True):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    object: str = "chat.completion"


class ChatDelta(Struct, kw_only=True, omit_defaults=True):
    role: str | None = None
    content: str | None = None


class ChatChunkChoice(Struct, kw_only=True):
    index: int
    delta: ChatDelta
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None


class ChatChunk(Struct, kw_only=True):
    """One event of a stream."""

    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    system_fingerprint: str
    usage: Usage | None = None
    object: str = "chat.completion.chunk"


class CompletionLogprobs(Struct, kw_only=True):
    """A list entry for each token; text_offset: where its text begins in that of the choice."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Struct, kw_only=True):
    index: int
    text: str
    finish_reason: str | None = None
    logprobs: CompletionLogprobs | None = None


class Completion(Struct, kw_only=True):
    """The answer, and one event of a stream."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    usage: Usage | None = None
    object: str = "text_completion"


class Embedding(Struct, kw_only=True):
    """embedding: numbers, or the base64 of them as little-endian float32."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class EmbeddingList(Struct, kw_only=True):
    data: list[Embedding]
    model: str
    usage: Usage
    object: str = "list"
