"""python -m serve: real processes, asked by the official client and over bare sockets."""

import json
import os
import socket
import threading
import time
from pathlib import Path

import openai
import pytest
import torch

from engine import load_run
from nanogpt.maps import attention_maps
from tests.conftest import NAMES, Forked
from tests.helpers import ok, refused
from tests.serve_helpers import Server, train_runs

FOREVER = {"prompt": "a", "max_tokens": 4000, "temperature": 1.0}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Four runs: names, a stream, conversations, labels."""
    folder, before = tmp_path_factory.mktemp("served"), Path.cwd()
    os.chdir(folder)
    train_runs(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def server(runs):
    server = Server(runs, "names", "stream", "chat", "labels", "--max-streams", 8, "--queue", 20)
    yield server
    result = server.end()
    assert result.code == 0 and "Traceback" not in result.err, result.err


def test_the_models_are_listed_with_what_they_are(server):
    models = {model.id: model for model in server.client.models.list()}
    assert [*models] == ["names", "stream", "chat", "labels"] and models["chat"].chat and not models["names"].chat
    assert (
        models["labels"].labels == ["long", "short"] and server.client.models.retrieve("stream").family == "transformer"
    )
    assert json.loads(server.get("/health")[2]) == {"status": "ok", "models": 4, "key": False}


@pytest.mark.parametrize("name", ["names", "stream"])
def test_a_completion_is_the_sample_of_its_seed_whole_and_streamed(server, runs, name):
    run = load_run(runs / name)
    asked = {"model": name, "prompt": "a", "seed": 5, "max_tokens": 30, "temperature": 0.8}
    (alone,) = run.generate("a", seed=5, max_new_tokens=30, temperature=0.8)
    whole = server.client.completions.create(**asked, echo=True)
    assert whole.choices[0].text == alone and whole.model == name
    assert whole.usage.prompt_tokens == len(run.prompt_ids("a"))
    assert whole.choices[0].finish_reason == ("length" if whole.usage.completion_tokens == 30 else "stop")
    events = [*server.client.completions.create(**asked, stream=True, stream_options={"include_usage": True})]
    assert "a" + "".join(event.choices[0].text for event in events[:-1]) == alone
    assert events[-1].usage == whole.usage and events[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_several_choices_of_several_prompts(server, runs):
    asked = {"model": "stream", "prompt": ["a", "the "], "n": 3, "seed": 7, "max_tokens": 9}
    found = server.client.completions.create(**asked).choices
    assert [choice.index for choice in found] == [*range(6)]
    run = load_run(runs / "stream")
    alone = [run.generate(p, seed=7 + n, max_new_tokens=9)[0].removeprefix(p) for p in ("a", "the ") for n in range(3)]
    assert [choice.text for choice in found] == alone


def test_stop_texts_and_probabilities(server):
    asked = {"model": "stream", "prompt": "th", "max_tokens": 60, "seed": 1, "logprobs": 3, "stop": ["\n", " a"]}
    choice = server.client.completions.create(**asked).choices[0]
    assert choice.finish_reason in ("stop", "length") and "\n" not in choice.text and " a" not in choice.text
    told = choice.logprobs
    assert "".join(told.tokens).startswith(choice.text) and all(len(top) == 3 for top in told.top_logprobs)
    for token, value, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert value <= max(top.values()) + 1e-6 and top.get(token, value) == pytest.approx(value)


def test_sample_py_tells_the_same(server, runs):
    """Texts, ends, probabilities and the likeliest tokens of a seed, with several stop texts."""
    asked = {"prompt": "a", "seed": 4, "max_tokens": 25, "temperature": 0.9, "stop": ["q", "er"], "logprobs": 3}
    flags = ["--prompt", "a", "--seed", 4, "--max-new-tokens", 25, "--temperature", 0.9, "--stop", "q", "--stop", "er"]
    for name in ("names", "stream"):
        choice = server.client.completions.create(model=name, echo=True, **asked).choices[0]
        one = json.loads(ok(Forked(runs, "sample.py", name, *flags, "--num", 1, "--logprobs", 3, "--json").wait()).out)
        assert one["text"] == choice.text and one["end"] in (choice.finish_reason, "eos")
        told = choice.logprobs
        assert [each["token"] for each in one["logprobs"]] == told.tokens
        assert [each["logprob"] for each in one["logprobs"]] == pytest.approx(told.token_logprobs, abs=1e-5)
        for each, top in zip(one["logprobs"], told.top_logprobs, strict=True):
            assert {one["token"]: one["logprob"] for one in each["top_logprobs"]} == pytest.approx(top, abs=1e-5)
        score = json.loads(server.get("/v1/score", {"model": name, "text": "emma"})[2])
        scored = json.loads(ok(Forked(runs, "sample.py", name, "--score", "emma", "--json").wait()).out)["logprobs"]
        assert [each["token"] for each in scored] == score["tokens"]
        assert [each["logprob"] for each in scored] == pytest.approx(score["logprobs"], abs=1e-6)


def test_a_conversation(server, runs):
    messages = [{"role": "user", "content": f"Greet.\n{NAMES[0]}"}]
    asked = {"model": "chat", "messages": messages, "max_tokens": 12}
    whole = server.client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    text = whole.choices[0].message.content
    assert "".join(each.token for each in whole.choices[0].logprobs.content).startswith(text)
    events = [*server.client.chat.completions.create(**asked, stream=True)]
    assert events[0].choices[0].delta.role == "assistant"
    assert "".join(event.choices[0].delta.content for event in events) == text
    said = ok(
        Forked(runs, "sample.py", "chat", "--chat", "--message", messages[0]["content"], "--max-new-tokens", 12).wait()
    )
    assert said.out.rstrip("\n") == text.rstrip("\n")
    words = ["--chat", "--message", messages[0]["content"], "--max-new-tokens", 12, "--logprobs", 2]
    one = json.loads(ok(Forked(runs, "sample.py", "chat", *words, "--json").wait()).out)
    told = whole.choices[0].logprobs.content
    assert [each["token"] for each in one["logprobs"]] == [each.token for each in told]
    assert [each["logprob"] for each in one["logprobs"]] == pytest.approx([each.logprob for each in told], abs=1e-5)
    assert [len(each["top_logprobs"]) for each in one["logprobs"]] == [2] * len(told)
    lines = ok(Forked(runs, "sample.py", "chat", *words).wait()).out.splitlines()
    assert len([line for line in lines if line.startswith("  ")]) == 1 + len(told)
    words = [*words[:3], "--stop", text[4:6], "--stop", text[1:3], "--max-new-tokens", 12]
    assert ok(Forked(runs, "sample.py", "chat", *words).wait()).out == text[: text.index(text[1:3])] + "\n"


def test_messages_come_as_chat_data_has_them(server, runs):
    system, question = "Be brief.", f"Greet.\n{NAMES[0]}"
    plain = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    parts = [{"type": "text", "text": part} for part in ("Greet.", f"\n{NAMES[0]}")]
    called = {"id": "1", "type": "function", "function": {"name": "greet", "arguments": "{}"}}
    asked = {"role": "assistant", "content": None, "tool_calls": [called]}
    said = {"role": "tool", "tool_call_id": "1", "content": "Hi"}

    def answer(*messages) -> str:
        status, _, text = server.get("/v1/chat/completions", {"model": "chat", "messages": messages, "max_tokens": 12})
        assert status == 200
        return json.loads(text)["choices"][0]["message"]["content"]

    expected = answer(*plain)
    assert answer({"role": "developer", "content": system}, {"role": "user", "content": parts}) == expected
    written = {"role": "assistant", "content": '{"name": "greet", "arguments": {}}'}
    assert answer(*plain, asked, said) == answer(*plain, written, {"role": "user", "content": "Hi"})


def test_scores_labels_and_vectors(server, runs):
    status, _, text = server.get("/v1/score", {"model": "names", "text": "emma"})
    score, run = json.loads(text), load_run(runs / "names")
    assert status == 200 and score["tokens"] == [*"emma", "\n"]
    assert score["loss"] == pytest.approx(run.score("emma").loss) and -sum(score["logprobs"]) == pytest.approx(
        5 * score["loss"]
    )
    status, _, text = server.get("/v1/classify", {"input": ["emma", "christopher"]})
    assert status == 200 and all(
        sum(each["probabilities"].values()) == pytest.approx(1, abs=1e-5) for each in json.loads(text)["data"]
    )
    vectors = server.client.embeddings.create(model="stream", input=["the cat", "the cat " * 30])
    assert (
        len({len(each.embedding) for each in vectors.data}) == 1
        and vectors.data[0].embedding != vectors.data[1].embedding
    )


def test_what_the_heads_of_a_transformer_look_at(server, runs):
    status, _, text = server.get("/v1/attention", {"model": "stream", "text": "the cat"})
    found, run = json.loads(text), load_run(runs / "stream")
    assert status == 200 and found["tokens"] == [*"the cat"]
    maps = attention_maps(run.model, torch.tensor(run.prompt_ids("the cat")))
    weights = [[[row[: n + 1].tolist() for n, row in enumerate(head)] for head in layer] for layer in maps]
    for layer, rounded in zip(weights, found["weights"], strict=True):
        for head, rows in zip(layer, rounded, strict=True):
            assert all(row == pytest.approx(told, abs=1e-4) for row, told in zip(head, rows, strict=True))
    cards = {model.id: model for model in server.client.models.list()}
    assert cards["stream"].attention and not cards["names"].attention


def test_the_page_needs_no_key_and_runs_nothing_but_its_own_script(server):
    status, headers, text = server.get("/")
    policy = headers["content-security-policy"]
    assert status == 200 and headers["content-type"].startswith("text/html") and len(text.encode()) < 30_000
    assert "unsafe" not in policy and "default-src 'none'" in policy and "script-src 'sha256-" in policy
    assert "://" not in text.replace("http://www.w3.org/2000/svg", "")  # no other host


SAID = [{"role": "user", "content": "a"}]
PICTURE = {"type": "image_url", "image_url": {"url": "a.png"}}
BAD_MESSAGES = [
    (2 * SAID, "message 2 is the user's where the assistant's has to be"),
    ([{"role": "bot", "content": "a"}], "role 'bot'; there are: system, developer, user"),
    ([{"role": "user", "content": ""}], "message 1: 'content' is empty"),
    ([{"role": "user", "content": [PICTURE]}], "message 1: 'content' has no text"),
    ([{"role": "user", "content": ["a", PICTURE]}], "image_url: a model of texts reads text alone"),
    ([*SAID, {"role": "assistant", "content": "b"}], "the last message has to be the user's"),
]
BAD = [
    ("/v1/completions", {"model": "nope"}, 404, "model", "no model 'nope'; there are: names, stream, chat, labels"),
    ("/v1/completions", {"model": "labels"}, 400, "model", "labels is none that writes texts"),
    ("/v1/completions", {"temperature": -1}, 400, "temperature", "temperature is -1.0; it has to be a number from 0"),
    ("/v1/completions", {"presence_penalty": 1}, 400, "presence_penalty", "presence_penalty means nothing here"),
    ("/v1/completions", {"n": 0}, 400, "n", "n: input should be greater than or equal to 1"),
    ("/v1/completions", {"n": 100}, 400, "prompt", "are 100 texts; a request may ask for 1 to 28"),
    ("/v1/completions", {"prompt": []}, 400, "prompt", "a request may ask for 1 to 28"),
    ("/v1/completions", {"max_tokens": 5000}, 400, "max_tokens", "max_tokens is 5000; at most 4096"),
    ("/v1/completions", {"prompt": "é"}, 400, "prompt", "character 'é' (position 0) is not in this model's vocabulary"),
    ("/v1/completions", {"stop": ""}, 400, "stop", "stop is empty; leave it out"),
    ("/v1/completions", {"stop": list("abcde")}, 400, "stop", "stop has 5 texts; it may have 4"),
    ("/v1/completions", {"seed": -3}, 400, "seed", "seed is -3; it has to be a whole number from 0"),
    ("/v1/chat/completions", {"model": "names", "messages": SAID}, 400, "model", "not trained on"),
    ("/v1/chat/completions", {"model": "chat", "messages": []}, 400, "messages", "list should have at least 1"),
    *(
        ("/v1/chat/completions", {"model": "chat", "messages": messages}, 400, "messages", words)
        for messages, words in BAD_MESSAGES
    ),
    ("/v1/chat/completions", {"messages": [SAID[0] | {"name": "b"}]}, 400, "messages.0.name", "means nothing here"),
    ("/v1/score", {"text": ""}, 400, "text", "text: string should have at least 1 character"),
    ("/v1/attention", {"model": "names", "text": "a"}, 400, "model", "names is no Transformer"),
    ("/v1/attention", {"model": "stream", "text": "a cat sat on the mat"}, 400, "text", "20 tokens; at"),
    ("/v1/nothing", {}, 404, None, "there is no POST /v1/nothing"),
]  # fmt: skip


@pytest.mark.parametrize("path, body, status, param, words", BAD, ids=lambda value: str(value)[:40])
def test_what_is_refused_is_named_by_its_field(server, path, body, status, param, words):
    found, headers, text = server.get(path, body)
    error = json.loads(text)["error"]
    assert (found, error["param"]) == (status, param) and words in error["message"] and "--" not in error["message"]
    assert error["type"] == "invalid_request_error" and "default-src 'none'" in headers["content-security-policy"]


def test_too_large_a_body_is_refused_however_it_comes(server):
    assert server.get("/v1/completions", {"prompt": "a" * (1 << 20)})[0] == 413
    with socket.create_connection(("127.0.0.1", server.port)) as wire:
        wire.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
        try:
            for _ in range(20):
                wire.sendall(chunk)
        except OSError:  # it has been answered, and closed
            pass
        assert b" 413 " in wire.recv(200)


def test_a_client_that_leaves_stops_the_work(server):
    """Streamed, and waiting for a whole answer: two steps after the server knows, nothing of it is drawn."""
    for stream in (True, False):
        cancelled = server.count("cancelled_total", "stream")
        with socket.create_connection(("127.0.0.1", server.port)) as wire:
            body = json.dumps(FOREVER | {"model": "stream", "stream": stream}).encode()
            head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length:"
            wire.sendall(f"{head} {len(body)}\r\n\r\n".encode() + body)
            server.wait_for("drawing", "stream", lambda n: n == 1)
        server.wait_for("cancelled_total", "stream", lambda n, before=cancelled: n == before + 1)
        assert server.count("drawing", "stream") == 0


def test_many_at_once_are_all_answered_or_told_to_come_again(server):
    answers: list[str] = []

    def ask(n: int) -> None:
        try:
            found = server.client.completions.create(model="stream", prompt="a", seed=n, max_tokens=20)
            answers.append(found.choices[0].text)
        except openai.RateLimitError as error:
            assert error.response.headers["Retry-After"] == "1" and error.body["code"] == "queue_full"
            answers.append("busy")

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 60 and answers.count("busy") < 60
    assert server.count("drawing", "stream") == server.count("waiting", "stream") == 0


def test_a_key_is_asked_for_and_cors_is_given_where_it_was_said(runs):
    words = ["names", "--api-key-file", "keys"]
    (runs / "keys").write_text("secret\nother\n")
    (runs / "keys").chmod(0o644)
    refused(Forked(runs, "-m serve", *words).wait(), "may be read by other users", "chmod 600")
    (runs / "keys").chmod(0o600)
    server = Server(runs, *words, "--cors", "https://a.example", "--log-json", key="other")
    assert server.get("/")[0] == 200 and json.loads(server.get("/health")[2])["key"] is True
    assert server.get("/v1/curves")[0] == 401 and [model.id for model in server.client.models.list()] == ["names"]
    for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic other"}):
        status, headers, text = server.get("/v1/models", **given)
        assert status == 401 and json.loads(text)["error"]["code"] == "invalid_api_key"
    assert server.get("/health", Origin="https://a.example")[1]["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-origin" not in server.get("/health", Origin="https://b.example")[1]
    lines = [json.loads(line) for line in server.end().err.splitlines()]
    assert {(line["path"], line["status"]) for line in lines} >= {("/health", 200), ("/v1/models", 401)}


@pytest.mark.parametrize("grace, is_whole", [(30, True), (1, False)])
def test_a_signal_lets_open_answers_end_within_the_grace(runs, grace, is_whole):
    server = Server(runs, "stream", "--grace", grace, "--max-tokens", 100_000)
    found: list[object] = []

    def ask() -> None:
        length = 10_000 if is_whole else 100_000
        try:
            found.append(
                server.client.completions.create(model="stream", prompt="a", max_tokens=length, stop="never said")
            )
        except openai.OpenAIError as error:
            found.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    server.wait_for("drawing", "stream", lambda n: n == 1)
    started = time.monotonic()
    result = server.end()
    asking.join()
    assert result.code == 0 and "Traceback" not in result.err, result.err
    assert time.monotonic() - started < 20
    if is_whole:
        assert found[0].usage.completion_tokens == 10_000
    elif isinstance(found[0], openai.OpenAIError):  # it was faster than the grace otherwise
        assert "the server is ending" in str(found[0]) or isinstance(found[0], openai.APIConnectionError)


def stream_of_curves(port: int) -> socket.socket:
    """An open stream of curves, of which the first event has come."""
    wire = socket.create_connection(("127.0.0.1", port), timeout=30)
    wire.sendall(b"GET /v1/curves HTTP/1.1\r\nHost: x\r\n\r\n")
    seen = b""
    while b"data: " not in seen:
        assert (part := wire.recv(1 << 16))
        seen += part
    return wire


def test_streams_that_never_end_by_themselves_end_with_the_server(runs):
    """With a grace of a minute: open ones, and ones that were left before, beside an answer that ends whole."""
    server = Server(runs, "stream", "--grace", 60)
    stream_of_curves(server.port).close()
    with stream_of_curves(server.port):
        with socket.create_connection(("127.0.0.1", server.port)) as wire:  # a page that is closed while it writes
            body = json.dumps(FOREVER | {"stream": True}).encode()
            head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length:"
            wire.sendall(f"{head} {len(body)}\r\n\r\n".encode() + body)
            server.wait_for("drawing", "stream", lambda n: n == 1)
        server.wait_for("drawing", "stream", lambda n: n == 0)
        started = time.monotonic()
        assert server.end().code == 0 and time.monotonic() - started < 20  # not the grace


def test_what_cannot_be_served_is_refused_at_once(runs, server):
    serve = lambda *words: Forked(runs, "-m serve", *words).wait()  # noqa: E731
    refused(serve("nowhere"), "nowhere")
    refused(serve("names", "names"), "names is named twice")
    refused(serve("names", "--port", server.port), f"cannot listen on 127.0.0.1:{server.port}", "another --port")
    refused(serve("names", "--curves", "nowhere"), "--curves nowhere is no folder")
    refused(serve("names", "--max-streams", 0), "--max-streams is 0; it may be 1 or more")
