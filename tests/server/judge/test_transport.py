"""Send requests over real sockets: what is sent, and what each failure is."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import openai
import pytest
from pydantic import SecretStr

from markscheme_server.judge.reply_cap import MAX_REPLY_BYTES, UnusableReply
from markscheme_server.judge.transport import Transport
from markscheme_server.judge_settings import JudgeSettings

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


class Server:
    """Keeps the requests that come, and answers as told."""

    def __init__(self, answer: bytes = OK, *, silent: bool = False) -> None:
        self.answer, self.silent = answer, silent
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.heads.append(head.decode())
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                self.bodies.append(await reader.readexactly(int(length or 0)))
                if self.silent:
                    await asyncio.sleep(60)
                writer.write(self.answer)
                if self.answer != OK:
                    return
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[str]:
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"


@asynccontextmanager
async def sending(url: str, **more: object) -> AsyncIterator[Transport]:
    settings = JudgeSettings.model_validate({"base_url": url, "model": "m", **more})
    made = Transport(url, settings, SecretStr("sk-judge"))
    yield made
    await made.aclose()


async def test_requests_bear_the_sdks_headers_and_ours_and_share_a_connection() -> None:
    server = Server()
    async with (
        serving(server) as url,
        sending(url, extra_headers={"X-Tenant": "red"}) as transport,
    ):
        for body in (b'{"n": 1}', b'{"nn": 22}'):
            reply = await transport.request("POST", "/chat/completions", body)
            assert (reply.status, reply.content) == (200, b"{}")
            assert reply.headers.get("Content-Length") == reply.headers.get("content-length") == "2"
        await transport.request("GET", "/models")
    assert server.bodies == [b'{"n": 1}', b'{"nn": 22}', b""]
    assert server.connections == 1
    for head in server.heads:
        lines = {line.partition(":")[0].lower(): line for line in head.split("\r\n")}
        assert lines["authorization"] == "authorization: Bearer sk-judge"
        assert lines["x-tenant"].endswith("red")
        assert lines["accept-encoding"].endswith("identity")
        assert "OpenAI" in lines["user-agent"]
    assert server.heads[0].startswith("POST /v1/chat/completions HTTP/1.1\r\n")
    assert server.heads[2].startswith("GET /v1/models HTTP/1.1\r\n")


async def test_the_user_and_password_of_an_address_are_sent_in_place_of_the_key() -> None:
    server = Server()
    async with (
        serving(server) as url,
        sending(url.replace("http://", "http://red:p%40ss@")) as transport,
    ):
        assert (await transport.request("POST", "/chat/completions", b"{}")).status == 200
    [head] = server.heads
    assert f"authorization: Basic {base64.b64encode(b'red:p@ss').decode()}" in head.splitlines()
    assert "red:" not in head.splitlines()[0]


async def test_where_nobody_listens_there_was_no_connection() -> None:
    async with serving(Server()) as url:
        pass
    async with sending(url) as transport:
        with pytest.raises(openai.APIConnectionError) as failed:
            await transport.request("POST", "/chat/completions", b"{}")
    assert not isinstance(failed.value, openai.APITimeoutError)
    assert isinstance(failed.value.__cause__, aiohttp.ClientConnectorError)


async def test_an_endpoint_that_falls_silent_times_out() -> None:
    async with serving(Server(silent=True)) as url, sending(url, timeout_s=0.2) as transport:
        with pytest.raises(openai.APITimeoutError):
            await transport.request("POST", "/chat/completions", b"{}")


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{}"])
async def test_a_connection_that_ends_in_the_answer_is_no_time_out(sent: bytes) -> None:
    async with serving(Server(sent)) as url, sending(url) as transport:
        with pytest.raises(openai.APIConnectionError) as failed:
            await transport.request("POST", "/chat/completions", b"{}")
    assert not isinstance(failed.value, openai.APITimeoutError)


async def test_a_reply_that_is_too_large_is_not_read_to_its_end() -> None:
    body = b"x" * (MAX_REPLY_BYTES + 1)
    sent = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    async with serving(Server(sent)) as url, sending(url) as transport:
        with pytest.raises(UnusableReply):
            await transport.request("POST", "/chat/completions", b"{}")


async def test_a_reason_in_latin_1_hides_no_answer() -> None:
    sent = b"HTTP/1.1 400 Requ\xeate\r\ncontent-length: 2\r\n\r\n{}"
    async with serving(Server(sent)) as url, sending(url) as transport:
        reply = await transport.request("POST", "/chat/completions", b"{}")
    assert (reply.status, reply.content) == (400, b"{}")


async def test_no_redirect_is_followed() -> None:
    sent = b"HTTP/1.1 307 X\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
    async with serving(Server(sent)) as url, sending(url) as transport:
        assert (await transport.request("POST", "/chat/completions", b"{}")).status == 307


@pytest.mark.parametrize(("unless", "through"), [("", True), ("judge.test", False)])
@pytest.mark.parametrize("name", ["http_proxy", "all_proxy"])
async def test_the_environments_proxy_is_used_unless_the_host_is_left_out(
    name: str, unless: str, through: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Server()
    async with serving(proxy) as url:
        for each in ("http_proxy", "all_proxy", "no_proxy"):
            monkeypatch.delenv(each, raising=False)
            monkeypatch.delenv(each.upper(), raising=False)
        monkeypatch.setenv(name, url.removesuffix("/v1"))
        monkeypatch.setenv("no_proxy", unless)
        async with sending("http://judge.test/v1", timeout_s=5) as transport:
            if through:
                await transport.request("POST", "/chat/completions", b"{}")
            else:
                with pytest.raises(openai.APIConnectionError):
                    await transport.request("POST", "/chat/completions", b"{}")
    assert [head.split(" ")[1] for head in proxy.heads] == (
        ["http://judge.test/v1/chat/completions"] if through else []
    )
