"""`cyx gateway DEPLOYMENT`: a deployment at an address of this machine, for programs that speak HTTP."""

import argparse
import asyncio
import importlib
from typing import Any

from cyxcore.errors import MissingExtra
from cyxnet.cli.exits import DONE
from cyxnet.cli.running import connected
from cyxnet.cli.screen import Screen
from cyxnet.gateway import Gateway

HOST = "127.0.0.1"  # who reaches it asks in this client's name


async def gateway(args: argparse.Namespace, screen: Screen) -> int:
    """Until Ctrl-C; what is being answered then is answered."""
    httpserver = _httpserver()
    async with connected(args) as client:
        deployment = await client.deployments.whole_id(args.deployment)
        front = Gateway(client.deployments.questions, deployment, args.patience)
        server = await httpserver.Server.start(front, HOST, args.port)
        try:
            screen.result(
                f"{deployment} answers at {server.url}, and the OpenAI API at {server.url}/v1; stop it with Ctrl-C",
                {"url": server.url, "deployment": deployment},
            )
            await asyncio.Event().wait()
        finally:
            await server.close()
    return DONE


def _httpserver() -> Any:
    try:
        return importlib.import_module("cyxnet.httpserver")
    except ModuleNotFoundError as error:
        raise MissingExtra(f"cyx gateway needs {error.name}; run: pip install 'cyx[http]'") from None
