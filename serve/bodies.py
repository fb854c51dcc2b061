"""The bodies of requests: what may be asked for. A field that is not here is refused by its name."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.run.arguments import MOST_LOGPROBS, MOST_STOPS

Stop = Annotated[str | list[str] | None, Field(description=f"where the text ends; up to {MOST_STOPS} texts")]
MOST_CHOICES = 128


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StreamOptions(_Body):
    include_usage: bool = False


class _Drawn(_Body):
    """What completions and chats have in common."""

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop: Stop = None
    seed: int | None = None
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None  # of no use here; every client may send it


class Completion(_Drawn):
    prompt: str | list[str] = ""
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    echo: bool = False


class Message(_Body):
    """As chat data has it: data/messages.py says what the roles mean and what a content may be."""

    role: str
    content: str | list[Any] | None = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None  # not read: what a tool says follows the call


class Conversation(_Drawn):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)


class Scoring(_Body):
    model: str | None = None
    text: str = Field(min_length=1)


class Attention(_Body):
    model: str | None = None
    text: str = Field(min_length=1)


class Classification(_Body):
    model: str | None = None
    input: str | list[str]


class Embeddings(_Body):
    model: str | None = None
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None
