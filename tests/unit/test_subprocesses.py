"""Two systems that start at the same moment choose the same port; one of them chooses again."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import ExitStack

import pytest

from email_ingestion.errors import OperationFailed
from email_ingestion.fleet.subprocesses import start_on_free_ports
from tests.servers.ports import free_port


def test_a_port_that_somebody_takes_meanwhile_is_not_insisted_on():
    wanted, tried = [free_port(), free_port()], []
    with ExitStack() as cleanup:

        def start(ports: Sequence[int]) -> None:
            tried.append(ports)
            if len(tried) == 1:
                cleanup.enter_context(socket.create_server(("127.0.0.1", ports[1])))
                raise OperationFailed("the port is in use")

        ports = start_on_free_ports(wanted, start)
    assert tried == [wanted, ports]
    assert ports[0] == wanted[0]
    assert ports[1] != wanted[1]


def test_what_is_wrong_for_another_reason_is_not_tried_twice():
    tried = []

    def start(ports: Sequence[int]) -> None:
        tried.append(ports)
        raise OperationFailed("no memory")

    with pytest.raises(OperationFailed, match="no memory"):
        start_on_free_ports([free_port()], start)
    assert len(tried) == 1
