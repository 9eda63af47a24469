"""Promises of serving.inspect_api and serving.page_files: what the page asks, and what it is made of."""

import asyncio
import hashlib
import re
import threading
from base64 import b64decode, b64encode
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from starlette.testclient import TestClient

from cluster.serving.completions_schema import ServedModel
from cluster.serving.http_api import Admission, Api, Limits, build_app
from cluster.serving.http_guard import Access, access_for
from cluster.serving.inspect_api import InspectApi
from cluster.serving.inspecting import MAX_INSPECTIONS, CheckpointInspector, InspectClient
from cluster.serving.page_files import FOLDER, joined_script, page_in_one_file, read_page
from gpt_core.inspection.inspection import Inspector, Query
from gpt_core.model.gpt import GPT
from gpt_core.model.presets import ModelShape
from gpt_core.tokens.tokenizer import load_tokenizer
from tests.reference import gpt2_numpy

BYTES = load_tokenizer("bytes")
SHAPE = ModelShape(2, 2, 16, num_positions=160, vocabulary_size=257)
MODEL = ServedModel("tiny", BYTES, window_tokens=160, fingerprint="herd-0", created=7)


class Direct:
    """Inspects here instead of in a replica; fails as one may where told to."""

    failure: Exception | None = None
    gate: threading.Event | None = None

    def __init__(self, inspector):
        self._inspector = inspector
        self.waiting = threading.Semaphore(0)

    async def check(self):
        raise NotImplementedError

    complete = stream = check

    async def inspect(self, query):
        if self.gate:
            self.waiting.release()
            await asyncio.to_thread(self.gate.wait, 20)
        if self.failure:
            raise self.failure
        return self._inspector.inspect(query)


@pytest.fixture(scope="module")
def weights():
    torch.set_num_threads(1)
    return {name: tensor.detach() * 3 for name, tensor in GPT(SHAPE).initialise(0).named_parameters()}


@pytest.fixture
def direct(weights):
    return Direct(Inspector(weights, SHAPE, BYTES))


def make(direct, access=None, admission=None):
    admission = admission or Admission(2)
    pages = InspectApi(MODEL, direct, admission, 2000).routes()
    app = build_app(Api(MODEL, direct, Limits(2000, 2), admission), access or Access(None, None), pages)
    return TestClient(app, base_url="http://localhost", raise_server_exceptions=False)


def inspect(client, **body):
    return client.post("/v1/inspect", json=body)


def test_the_answer_carries_the_numbers_exactly_and_no_part_unasked_for(direct, weights):
    answer = inspect(make(direct), prompt="hello", show=["next", "attention"], layer=1, head=1).json()
    assert (answer["object"], answer["name"], answer["fingerprint"]) == ("inspection", "tiny", "herd-0")
    assert [token["text"] for token in answer["tokens"]] == list("hello")
    logits = gpt2_numpy.logits(list(b"hello"), weights, 2, 2)[-1]
    for candidate in answer["next"]["candidates"]:
        assert candidate["logit"] == pytest.approx(logits[candidate["id"]], abs=1e-5)
    assert [len(row) for row in answer["attention"]] == [1, 2, 3, 4, 5]
    assert not {"step", "lens", "heads", "anatomy"} & set(answer)


def test_text_ids_and_nothing_are_prompts(direct):
    client = make(direct)
    text, ids = inspect(client, prompt="ab").json(), inspect(client, prompt=[97, 98]).json()
    assert text == ids
    assert [token["id"] for token in inspect(client, prompt="").json()["tokens"]] == [BYTES.end_of_text]
    assert inspect(client).json()["position"] == 0


def test_what_the_mask_hides_is_null(direct):
    step = inspect(make(direct), prompt="abc", show=["step"], position=1).json()["step"]
    assert [score is None for score in step["masked"]] == [False, False, True]
    assert len(step["scores"]) == 3


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"prompt": "a" * 129}, 400, "prompt"),
        ({"prompt": ["a", "b"]}, 400, "prompt"),
        ({"prompt": [999]}, 400, "prompt"),
        ({"prompt": 7}, 400, "prompt"),
        ({"prompt": "a", "position": 1}, 400, "position"),
        ({"prompt": "a", "layer": 2}, 400, "layer"),
        ({"prompt": "a", "head": -1}, 400, "head"),
        ({"prompt": "a", "head": "1"}, 400, "head"),
        ({"prompt": "a", "show": ["everything"]}, 400, "show"),
        ({"prompt": "a", "shwo": []}, 400, "shwo"),
        ({"prompt": "a", "model": "other"}, 404, "model"),
        ({"prompt": "a" * 3000}, 413, None),
    ],
)
def test_a_mistake_is_named_in_openai_s_shape(direct, body, status, field):
    response = inspect(make(direct), **body)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["param"] == field
    assert error["message"]


def test_a_full_or_closing_service_turns_inspections_away(direct):
    admission = Admission(1)
    client = make(direct, admission=admission)
    with admission.admit(1):
        response = inspect(client, prompt="a")
    assert (response.status_code, response.json()["error"]["code"]) == (429, "queue_full")
    assert response.headers["retry-after"] == "1"
    admission.is_draining = True
    assert inspect(client, prompt="a").json()["error"]["code"] == "shutting_down"


def test_no_more_than_a_few_prompts_are_looked_into_at_a_time(direct):
    client = make(direct, admission=Admission(100))
    direct.gate = threading.Event()
    with ThreadPoolExecutor(MAX_INSPECTIONS) as pool:
        busy = [pool.submit(inspect, client, prompt="a") for _ in range(MAX_INSPECTIONS)]
        assert all(direct.waiting.acquire(timeout=20) for _ in busy)
        response = inspect(client, prompt="a")
        direct.gate.set()
        assert [answer.result().status_code for answer in busy] == [200] * MAX_INSPECTIONS
    assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
    assert response.headers["retry-after"] == "1"
    assert inspect(client, prompt="a").status_code == 200


class Gated:
    """Counts the prompts it looks into until it is let go on."""

    def __init__(self):
        self.gate, self.looking = threading.Event(), threading.Semaphore(0)
        self.num_begun = 0

    def inspect(self, query):
        self.num_begun += 1
        self.looking.release()
        self.gate.wait(20)
        return {}


class OneReplica:
    """The handle of a deployment whose replica is here."""

    def __init__(self, inspector):
        self.inspect = self
        self._inspector = inspector

    def remote(self, query):
        return asyncio.ensure_future(self._inspector.inspect(query))


def test_prompts_whose_askers_have_left_take_no_more_threads_than_a_few(monkeypatch):
    gated = Gated()
    monkeypatch.setattr(CheckpointInspector, "_loaded", lambda _: gated)

    async def ask_and_leave():
        client = InspectClient(OneReplica(CheckpointInspector("none", BYTES)))
        asking = [asyncio.ensure_future(client.inspect(Query((97,)))) for _ in range(3 * MAX_INSPECTIONS)]
        for _ in range(MAX_INSPECTIONS):
            assert await asyncio.to_thread(gated.looking.acquire, timeout=20)
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
        last = asyncio.ensure_future(client.inspect(Query((97,))))
        gated.gate.set()
        assert await last == {}

    asyncio.run(ask_and_leave())
    assert gated.num_begun == MAX_INSPECTIONS + 1


def test_a_failure_tells_nothing_of_the_prompt_and_frees_its_place(direct):
    admission = Admission(1)
    client = make(direct, admission=admission)
    direct.failure = RuntimeError("the secret prompt")
    response = inspect(client, prompt="a")
    assert (response.status_code, admission.in_progress) == (500, 0)
    assert "secret" not in response.text


def test_the_page_loads_without_the_key_and_its_numbers_do_not(direct, monkeypatch):
    monkeypatch.setenv("HERD_API_KEY", "hush")
    client = make(direct, access_for("127.0.0.1"))
    assert client.get("/").status_code == client.get("/page/main.js").status_code == 200
    assert inspect(client, prompt="a").status_code == 401
    assert client.get("/page/../v1/models").status_code == 401
    answer = client.post("/v1/inspect", json={"prompt": "a"}, headers={"Authorization": "Bearer hush"})
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/page/", "/page/none.js", "/page/%2e%2e/serving.py", "/page/..%2fserving.py"])
def test_no_file_but_the_page_s_is_sent(direct, path):
    assert make(direct).get(path).status_code == 404


def test_every_file_of_the_page_is_sent_with_the_policy_that_binds_it(direct):
    client = make(direct)
    assert set(read_page()) == {"/", *(f"/page/{file.name}" for file in FOLDER.iterdir() if file.name != "index.html")}
    for path, file in read_page().items():
        response = client.get(path)
        assert response.content == file.content
        assert response.headers["content-type"].startswith(file.media_type)
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"


def test_the_page_names_no_other_host():
    for path, file in read_page().items():
        addresses = set(re.findall(rb"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", file.content))
        assert addresses <= {b"http://www.w3.org/2000/svg"}, path


def test_the_modules_of_the_page_fit_into_one_script():
    script = joined_script()
    assert not re.search(r"^(?:import|export)\b", script, re.MULTILINE)
    names = re.findall(r"^(?:async )?(?:function\*?|const|let|class) (\w+)", script, re.MULTILINE)
    assert sorted(names) == sorted(set(names))
    for file in FOLDER.glob("*.js"):
        body = file.read_text(encoding="utf-8").partition("\n\n")[2]
        assert body.replace("export ", "").strip() in script, file.name


def test_the_page_in_one_file_allows_its_own_script_and_style_alone():
    page = page_in_one_file({"answer": {"text": "</script><script>alert(1)</script>"}})
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    script, style = (
        re.search(rf"<{tag}>(.*?)</{tag.split()[0]}>", page, re.DOTALL) for tag in ('script type="module"', "style")
    )
    assert policy
    assert script
    assert style
    for kind, text in (("script", script.group(1)), ("style", style.group(1))):
        digest = b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy.group(1)
    assert "connect-src" not in policy.group(1)
    assert page.count("<script") == page.count("</script>") == 2
    assert "src=" not in page
    assert 'href="/' not in page
    icon = re.search(r"data:image/svg\+xml;base64,([^\"]*)", page)
    assert icon
    assert b64decode(icon.group(1)) == (FOLDER / "icon.svg").read_bytes()
