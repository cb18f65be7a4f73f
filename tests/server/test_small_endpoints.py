"""Models, health, tokenizer."""

from __future__ import annotations

from server.running import Running, Serve
from server.toy import TEMPLATE, toy_model


def test_models(toy_server: Running) -> None:
    client = toy_server.openai()
    [model] = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("toy", "model", "fermi")
    assert model.model_extra == {"max_model_len": 512, "state": "loaded"}
    assert client.models.retrieve("toy") == model
    assert client.models.retrieve("also/toy") == model


def test_several_models(serve: Serve) -> None:
    client = serve(toy_model("One."), toy_model("Two.", name="other/two")).openai()
    assert [model.id for model in client.models.list().data] == ["toy", "other/two"]
    for name, says in (("toy", "One."), ("also/toy", "One."), ("other/two", "Two.")):
        reply = client.chat.completions.create(model=name, messages=[{"role": "user", "content": "x"}])
        assert reply.choices[0].message.content == says


def test_health(toy_server: Running) -> None:
    with toy_server.http() as http:
        before = http.get("/health").json()
        after = http.get("/health").json()
        assert set(after) == {
            "status",
            "service",
            "uptime_seconds",
            "total_requests",
            "cache_hit_rate",
            "memory_usage_mb",
        }
        assert (after["status"], after["service"], after["cache_hit_rate"]) == ("ok", "fermi", 0.25)
        assert after["total_requests"] == before["total_requests"] + 1
        assert after["memory_usage_mb"] > 1
        assert http.get("/ready").json() == {"status": "ready", "model_loaded": True}
        for path in ("/health", "/ready", "/ping"):
            assert http.head(path).status_code == 200
        assert "date" in http.get("/ping").headers


def test_tokenize(toy_server: Running) -> None:
    with toy_server.http() as http:
        reply = http.post(
            "/tokenize", json={"prompt": "ab", "add_special_tokens": False, "return_token_strs": True}
        ).json()
        assert (reply["count"], reply["max_model_len"], reply["token_strs"]) == (2, 512, ["a", "b"])
        assert http.post("/detokenize", json={"tokens": reply["tokens"]}).json() == {"prompt": "ab"}
        chat = {"messages": [{"role": "user", "content": "Hi"}]}
        tokens = http.post("/tokenize", json=chat).json()["tokens"]
        assert http.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": "<s>[user]Hi[assistant]"}
        tokens = http.post("/tokenize", json={**chat, "add_generation_prompt": False}).json()["tokens"]
        assert http.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": "<s>[user]Hi"}
        for body in ({}, {"prompt": "x", **chat}):
            assert http.post("/tokenize", json=body).json()["error"]["param"] == "prompt"
        reply = http.post("/detokenize", json={"tokens": [0, 10**6]})  # of which nothing is left out in silence
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "tokens")


def test_tokenizer_info(toy_server: Running) -> None:
    with toy_server.http() as http:
        info = http.get("/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"], info["eos_token_ids"]) == ("<s>", "</s>", [257])
    assert (info["vocab_size"], info["max_model_len"], info["chat_template"]) == (258, 512, TEMPLATE)


def test_own_documentation(toy_server: Running) -> None:
    with toy_server.http() as http:
        document = http.get("/openapi.json").json()
    paths = document["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize", "/health"} <= set(paths)
    body = paths["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    name = body["$ref"].removeprefix("#/components/schemas/")
    assert "messages" in document["components"]["schemas"][name]["required"]
