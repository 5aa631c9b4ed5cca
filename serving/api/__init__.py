"""The HTTP API: jobs, blocks, chains and KServe V2 inference."""

from serving.api.app import create_app
from serving.api.server import serve
from serving.api.settings import ApiSettings

__all__ = ["ApiSettings", "create_app", "serve"]
