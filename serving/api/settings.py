"""What a server is told when it starts."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zoo.errors import InvalidInputError
from zoo.names import is_loopback
from zoo.schemas import explain

MIB = 2**20


class ApiSettings(BaseModel):
    """Address, limits and patience of one server; nothing is read from the environment.

    ``anonymous`` lets callers on this machine in without a key, and only while the
    server is bound to a loopback address. ``deadline_s`` is the longest any inference
    may take; a request may ask for less.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535, description="0 takes a free port")
    anonymous: bool = True
    deadline_s: float = Field(default=60.0, gt=0)
    drain_s: float = Field(default=30.0, ge=0)
    max_models: int = Field(default=32, ge=1, description="models kept loaded at once")
    max_json_bytes: int = Field(default=4 * MIB, ge=1)
    max_infer_bytes: int = Field(default=64 * MIB, ge=1)
    max_file_bytes: int = Field(default=1024 * MIB, ge=1)
    key_cache_s: float = Field(default=2.0, ge=0, description="a revoked key dies this late")
    name_cache_s: float = Field(default=1.0, ge=0, description="a moved alias is seen this late")

    def __init__(self, **values: Any) -> None:
        """Check the values.

        Raises:
            InvalidInputError: One is out of range or unknown; all such are named.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InvalidInputError(explain(error)) from error

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)
