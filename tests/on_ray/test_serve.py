"""``herd serve`` on a real Ray, called by OpenAI's own client."""

import concurrent.futures
import json
import socket
import time
import urllib.error
import urllib.request
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import ray
import ray.util
from ray.exceptions import RayActorError

from cluster.serving.http_guard import Access
from cluster.serving.service import application_name, resolve, running
from gpt_core.errors import ResourceError, RunFailedError
from gpt_core.generation.engine import Engine, EngineOptions
from gpt_core.generation.request import GenerationRequest, Sampling
from gpt_core.inspection.inspection import Inspector, Query
from gpt_core.model.gpt import GPT
from gpt_core.model.presets import ModelShape
from gpt_core.settings import EngineSettings, ServeSettings
from gpt_core.tokens.tokenizer import load_tokenizer
from gpt_core.training import checkpoint
from gpt_core.training.checkpoint import Description

SLOTS, QUEUE = 4, 6
CONTEXT = 8192
TOKENIZER = load_tokenizer("bytes")
SHAPE = ModelShape(2, 2, 32, num_positions=CONTEXT, vocabulary_size=TOKENIZER.vocabulary_size)
# So long, and at a temperature that draws no end of text, that no machine ends it before a test has left it.
LONG = {"model": "tiny", "prompt": "x", "max_tokens": CONTEXT - 1, "temperature": 0.2, "seed": 1}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    model = GPT(SHAPE).initialise(0)
    # Wider weights than training begins with: the next token then depends visibly on those before.
    weights = {name: tensor.detach() * 4 for name, tensor in model.named_parameters()}
    tokenizer = {"name": "bytes", "vocabulary_size": TOKENIZER.vocabulary_size}
    checkpoint.write(folder, Description(step=1, tokens=1, shape=SHAPE, tokenizer=tokenizer), weights, {})
    return folder


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def service(run_folder, cluster):
    from ray import serve

    settings = ServeSettings(
        checkpoint=str(run_folder), port=_free_port(), model_name="tiny", max_queued_completions=QUEUE,
        engine=EngineSettings(num_slots=SLOTS, precision="fp32"),
    )  # fmt: skip
    with running(settings, resolve(settings), Access(None, None), cluster) as address:
        application = application_name(settings.port)
        generator = serve.get_deployment_handle("Generator", application)
        yield SimpleNamespace(address=address, application=application, generator=generator, settings=settings)


@pytest.fixture
def client(service):
    with openai.OpenAI(base_url=f"{service.address}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture
def engine(run_folder):
    loaded = checkpoint.load(run_folder)
    return Engine(loaded.weights, loaded.shape, TOKENIZER, EngineOptions(slots=2, precision="fp32"))


def _numbers(service):
    return service.generator.statistics.remote().result(timeout_s=10)


def _wait_until(reached, otherwise, seconds=15):
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


def _wait_until_idle(service):
    def idle():
        numbers = _numbers(service)
        return numbers.num_slots_in_use + numbers.num_waiting == 0

    _wait_until(idle, "the engine went on")
    return _numbers(service)


def _kill_replica(service, deployment="Generator"):
    names: Any = ray.util.list_named_actors(all_namespaces=True)
    (replica,) = [actor for actor in names if f"{service.application}#{deployment}#" in actor["name"]]
    ray.kill(ray.get_actor(replica["name"], replica["namespace"]))


def test_a_completion_is_what_the_bare_engine_computes(client, engine):
    sampling = Sampling(max_tokens=20, temperature=0.8, top_k=30, n=2, seed=11)
    request = GenerationRequest("0", tuple(b"hello"), sampling, "completions")
    expected = [done.text for done in engine.run([request])]
    answer = client.completions.create(
        model="tiny", prompt="hello", max_tokens=20, temperature=0.8, n=2, seed=11, extra_body={"top_k": 30}
    )
    assert [choice.text for choice in answer.choices] == expected
    assert answer.usage.completion_tokens == 40


def test_a_stream_says_what_the_unstreamed_answer_says(client):
    body = {"model": "tiny", "prompt": ["ab", "c"], "max_tokens": 12, "n": 2, "seed": 3, "logprobs": 2, "echo": True}
    whole = client.completions.create(**body)
    texts, tokens, reasons, usage = {}, {}, {}, None
    for chunk in client.completions.create(**body, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            tokens.setdefault(choice.index, []).extend(choice.logprobs.token_logprobs)
            reasons[choice.index] = choice.finish_reason
    for choice in whole.choices:
        assert texts[choice.index] == choice.text
        assert tokens[choice.index] == choice.logprobs.token_logprobs
        assert reasons[choice.index] == choice.finish_reason
    assert usage == whole.usage


def test_text_and_ids_of_one_prompt_give_one_answer(client):
    one = client.completions.create(model="tiny", prompt="hello", seed=5)
    two = client.completions.create(model="tiny", prompt=list(b"hello"), seed=5)
    assert one.choices[0].text == two.choices[0].text


def test_requests_in_company_are_answered_as_alone(client):
    bodies = [{"model": "tiny", "prompt": "p" * (index + 1), "max_tokens": 30, "seed": index} for index in range(8)]
    alone = [client.completions.create(**body).choices[0].text for body in bodies]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda body: client.completions.create(**body).choices[0].text, bodies))
    assert together == alone


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_echoed_logprobs_serve_an_evaluation_harness(client, engine, max_tokens):
    prompts = [list(b"some context"), list(b"other")]
    answer = client.completions.create(
        model="tiny", prompt=prompts, echo=True, logprobs=1, max_tokens=max_tokens, temperature=0, seed=1234
    )
    for choice, prompt in zip(answer.choices, prompts, strict=True):
        logprobs = choice.logprobs
        assert len(logprobs.tokens) == len(logprobs.top_logprobs) == len(prompt) + max_tokens
        assert logprobs.token_logprobs[0] is None
        sampling = Sampling(max_tokens=max_tokens, temperature=0, echo=True, logprobs=1)
        (bare,) = engine.run([GenerationRequest("0", tuple(prompt), sampling)])
        assert logprobs.token_logprobs == [entry.logprob for entry in bare.logprobs]
        for entry, given, top in zip(
            bare.logprobs[1:], logprobs.token_logprobs[1:], logprobs.top_logprobs[1:], strict=True
        ):
            assert (given == max(top.values())) == (entry.token_id == entry.top[0][0])


def test_errors_reach_the_client_as_its_own_exceptions(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="a" * (CONTEXT + 1))
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="davinci", prompt="a")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="a", temperature=-1)
    assert caught.value.param == "temperature"


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "gpt-herd"


def test_readiness_says_yes(service):
    with urllib.request.urlopen(f"{service.address}/ready", timeout=10) as answer:
        assert answer.status == 200


def test_the_page_is_served_and_its_numbers_are_the_model_s(service, run_folder):
    loaded = checkpoint.load(run_folder)
    query = Query(tuple(b"hello"), ("next", "attention", "step"), None, 1, 1)
    expected = Inspector(loaded.weights, loaded.shape, TOKENIZER).inspect(query)
    with urllib.request.urlopen(f"{service.address}/", timeout=10) as page:
        assert "<title>gpt-herd</title>" in page.read().decode()
        assert "default-src 'none'" in page.headers["content-security-policy"]
    body = {"prompt": "hello", "show": query.parts, "layer": 1, "head": 1}
    given = json.loads(_ask(service, body))
    for row, wanted in zip(given["attention"], expected["attention"], strict=True):
        assert row == pytest.approx(wanted.tolist(), rel=1e-5, abs=1e-5)
    for name in ("query", "scores", "weights", "after"):
        assert given["step"][name] == pytest.approx(expected["step"][name].tolist(), rel=1e-5, abs=1e-5)
    logits = {candidate["id"]: candidate["logit"] for candidate in expected["next"]["candidates"]}
    assert {c["id"]: c["logit"] for c in given["next"]["candidates"][:20]} == pytest.approx(
        dict(list(logits.items())[:20]), rel=1e-5, abs=1e-5
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        _ask(service, {"prompt": "hello", "layer": 2})
    assert json.loads(caught.value.read())["error"]["param"] == "layer"


def _ask(service, body):
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{service.address}/v1/inspect", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


def test_a_stream_whose_client_left_is_cancelled(client, service):
    before = _wait_until_idle(service)
    with client.completions.create(**LONG, stream=True) as stream:
        next(iter(stream))
    after = _wait_until_idle(service)
    assert after.drawn_tokens - before.drawn_tokens < LONG["max_tokens"]


def test_an_unstreamed_request_whose_client_left_is_cancelled(client, service):
    before = _wait_until_idle(service)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).completions.create(**LONG)
    after = _wait_until_idle(service)
    assert after.drawn_tokens - before.drawn_tokens < LONG["max_tokens"]


def test_a_full_service_answers_429_and_has_room_again_later(client, service):
    _wait_until_idle(service)
    running_now = client.completions.create(**LONG, n=SLOTS, stream=True)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        # A stream's answer begins with its first token: this one waits for a slot until the first has left.
        queued = pool.submit(client.completions.create, **LONG, n=QUEUE, stream=True)
        _wait_until(lambda: _numbers(service).num_waiting == QUEUE, "the queue is not full")
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model="tiny", prompt="a")
        assert caught.value.code == "queue_full"
        assert int(caught.value.response.headers["retry-after"]) >= 1
        running_now.close()
        queued.result().close()
    _wait_until_idle(service)
    assert client.completions.create(model="tiny", prompt="a", max_tokens=2).usage.completion_tokens <= 2


def test_an_address_that_is_taken_is_refused(service, run_folder, cluster):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = ServeSettings(checkpoint=str(run_folder), port=taken.getsockname()[1])
        with (
            pytest.raises(ResourceError, match=f"127.0.0.1:{settings.port}: found Address already in use"),
            running(settings, resolve(settings), Access(None, None), cluster),
        ):
            pass


def test_the_address_answers_again_after_its_ingress_died(client, service):
    _kill_replica(service, "Ingress")

    def answers():
        try:
            return client.completions.create(model="tiny", prompt="a", max_tokens=2).choices
        except openai.APIConnectionError:
            return None

    _wait_until(answers, "the ingress was not replaced", seconds=60)
    assert answers()


def test_a_stream_goes_on_where_its_replica_died(client, service):
    body = {**LONG, "max_tokens": 400}
    calm = client.completions.create(**body).choices[0].text
    assert len(calm) > 100
    pieces = []
    for number, chunk in enumerate(client.completions.create(**body, stream=True)):
        pieces.append(chunk.choices[0].text)
        if number == 1:
            _kill_replica(service)
    assert "".join(pieces) == calm


def test_a_failed_engine_is_answered_with_503_until_ray_has_replaced_its_replica(client, service):
    broken = Sampling()
    object.__setattr__(broken, "max_tokens", "many")  # past every check: the engine's own thread stumbles over it
    answers = []

    def breaks():
        try:
            service.generator.complete.remote([GenerationRequest("broken", (1,), broken)]).result(timeout_s=30)
        except RunFailedError:
            return True
        except RayActorError:  # a test before this one killed the replica
            return False

    def is_well():
        try:
            return client.completions.create(model="tiny", prompt="a", max_tokens=2).choices
        except openai.InternalServerError as error:
            answers.append((error.status_code, "retry-after" in error.response.headers))

    _wait_until(breaks, "the engine did not break", seconds=60)
    _wait_until(is_well, "the replica was not replaced", seconds=90)
    assert set(answers) == {(503, True)}
