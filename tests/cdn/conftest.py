"""Fixtures of the CDN client's tests: two mirrors on loopback and a client that does not wait long."""

from collections.abc import Iterator

import pytest
from misbehaving_server import TIMING, MisbehavingServer

from tif1_pipeline.cdn.client import CdnClient
from tif1_pipeline.config import Config


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    server = MisbehavingServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def config(server: MisbehavingServer) -> Config:
    return Config(
        cdn_urls=[server.mirror("a"), server.mirror("b")],
        schedule_urls=[f"{server.origin}/s/schedule_{{year}}.json"],
        request_timeout=5,
        max_retries=2,
    )


@pytest.fixture
def client(config: Config) -> Iterator[CdnClient]:
    client = CdnClient(config, TIMING)
    yield client
    client.close()
