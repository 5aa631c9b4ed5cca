"""Bodies of the API: what is accepted, checked field by field, and what is documented.

Answers are written by the values' own ``to_json``; their models here describe them in
the OpenAPI page.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from zoo.jobs import Arm, CandidateState, JobKind, JobRequest, JobState
from zoo.store.protocols import SCOPES, Relation

BIG = 2**62

Text = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00]*$")]
Id = Annotated[str, Field(pattern=r"^[0-9A-Za-z_][0-9A-Za-z_.-]{0,127}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=0, le=BIG)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Body(BaseModel):
    """Something a client sends; a field nobody knows is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Answer(BaseModel):
    """Something the server sends."""

    model_config = ConfigDict(frozen=True)


class TensorSpecBody(Body):
    shape: list[Annotated[int, Field(ge=1, le=2**31)] | None] = Field(max_length=8)
    dtype: Annotated[str, Field(max_length=16)] = "float32"


class BlockSpecBody(Body):
    op: Annotated[str, Field(pattern=r"^[0-9A-Za-z_][0-9A-Za-z_./:-]{0,127}$")]
    params: dict[str, Any] = Field(default_factory=dict)
    inputs: list[TensorSpecBody] = Field(min_length=1, max_length=64)
    outputs: list[TensorSpecBody] = Field(min_length=1, max_length=64)


class PutBlock(Body):
    """A block whose weights were uploaded before."""

    spec: BlockSpecBody
    weights: Sha256
    num_params: Size
    size_bytes: Size
    signature: Annotated[str, Field(max_length=256, pattern=r"^[\x20-\x7e]*$")] | None = None
    job: Id | None = None


class PutChain(Body):
    """An ordered list of the ids of known blocks."""

    blocks: list[Sha256] = Field(min_length=1, max_length=4096)
    card: dict[str, Any] = Field(default_factory=dict)
    job: Id | None = None
    onnx: Sha256 | None = None


class PutAlias(Body):
    chain: Id


class PutProfile(Body):
    subject: Sha256
    device: Id
    runtime: Id
    precision: Id
    batch: Annotated[int, Field(ge=1, le=2**31)]
    median_ms: Annotated[Finite, Field(ge=0)]
    p95_ms: Annotated[Finite, Field(ge=0)]
    samples: list[Finite] = Field(default_factory=list, max_length=100_000)
    peak_bytes: Size | None = None


class EdgeBody(Body):
    child: Id
    parent: Id
    relation: Relation


class PutEdges(Body):
    edges: list[EdgeBody] = Field(max_length=10_000)


class SubmitJob(Body):
    """A request of one kind; ``device`` restricts who may run it."""

    kind: JobKind
    spec: dict[str, Any]
    name: Text = ""
    device: Annotated[str, Field(max_length=256, pattern=r"^[\x20-\x7e]*$")] | None = None


class CreateKey(Body):
    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00]*$")]
    owner: Id
    scopes: list[str] = Field(min_length=1, description=f"some of: {', '.join(SCOPES)}")
    expires_at: datetime | None = None
    shares: bool | None = None


class UpdateKey(Body):
    shares: bool


class CollectRequest(Body):
    dry_run: bool = True


class RepositoryIndexRequest(Body):
    ready: bool = False


class TensorSpecAnswer(Answer):
    shape: list[int | None]
    dtype: str


class BlockSpecAnswer(Answer):
    op: str
    params: dict[str, Any]
    inputs: list[TensorSpecAnswer]
    outputs: list[TensorSpecAnswer]


class BlockAnswer(Answer):
    id: str
    spec: BlockSpecAnswer
    weights: str
    num_params: int
    size_bytes: int
    signature: str | None


class BlockPage(Answer):
    items: list[BlockAnswer]
    next: str | None


class ChainAnswer(Answer):
    id: str
    blocks: list[BlockAnswer]
    card: dict[str, Any]
    num_params: int
    size_bytes: int


class ChainPage(Answer):
    items: list[ChainAnswer]
    next: str | None


class JobAnswer(Answer):
    id: str
    kind: JobKind
    state: JobState
    spec: dict[str, Any]
    owner: str
    shares: bool
    name: str
    device: str | None
    reason: str | None
    request: JobRequest | None
    progress: dict[str, Any]
    result: dict[str, Any] | None
    attempt: int
    token: int
    worker: str | None
    lease_expires_at: datetime | None
    created_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None


class JobPage(Answer):
    items: list[JobAnswer]
    next: str | None


class EventAnswer(Answer):
    job: str
    number: int
    at: datetime
    level: Literal["info", "warning", "error"]
    message: str
    data: dict[str, Any]


class CandidateAnswer(Answer):
    job: str
    number: int
    architecture: dict[str, Any]
    architecture_id: str
    arm: Arm
    state: CandidateState
    signature: str | None
    metrics: dict[str, float]
    spread: dict[str, float]
    repeats: int
    feasible: bool
    reason: str | None
    attempt: int
    reused_from: str | None
    reused: bool
    saved_s: float
    cost_s: float
    chain: str | None


class OriginAnswer(Answer):
    """A job whose evaluations were taken; ``job`` is null for all that the caller may not see."""

    job: str | None
    hits: int
    saved_s: float


class IdAnswer(Answer):
    id: str


class KeyAnswer(Answer):
    id: str
    name: str
    owner: str
    scopes: list[str]
    shares: bool
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class NewKeyAnswer(Answer):
    """The only answer that ever holds the secret."""

    key: KeyAnswer
    secret: str


class WhoAmI(Answer):
    owner: str
    scopes: list[str]
    key: str | None


class CollectAnswer(Answer):
    """What garbage collection deleted, or (``dry_run``) would delete, by id."""

    dry_run: bool
    num_blocks: int
    num_files: int
    blocks: list[str]
    files: list[str]


class ServerMetadata(Answer):
    name: str
    version: str
    extensions: list[str]


class Live(Answer):
    live: bool


class Ready(Answer):
    ready: bool


class ModelReady(Answer):
    name: str
    ready: bool


class TensorMetadata(Answer):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = None


class ModelMetadata(Answer):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class RepositoryEntry(Answer):
    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class InferTensor(BaseModel):
    """One tensor; ``data`` is flat or nested, or comes after the header as bytes."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class InferBody(BaseModel):
    id: str | None = None
    inputs: list[InferTensor]
    outputs: list[dict[str, Any]] | None = None
    parameters: dict[str, Any] | None = None


class InferAnswer(Answer):
    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[InferTensor]


class ErrorAnswer(Answer):
    """An error under /v1: ``{"type", "message", "details"?}``; under /v2: the message."""

    error: dict[str, Any] | str
