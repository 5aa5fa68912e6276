"""The page at GET /: what is sent, and how it works in a browser, where there is one."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from importlib.resources import files

import httpx
import pytest
import uvicorn
from helpers.browser import CHROMIUM, Browser
from helpers.small_models import tiny_judge

from gram_fast.ranking.tournament import STRATEGY_NAMES, WITH_K
from gram_fast.serving.app import make_app
from gram_fast.serving.keys import ApiKeys
from gram_fast.serving.limits import Limits

KINDS = {
    "/": "text/html; charset=utf-8",
    "/page/page.css": "text/css; charset=utf-8",
    "/page/page.js": "text/javascript; charset=utf-8",
    "/page/results.js": "text/javascript; charset=utf-8",
    "/page/icon.svg": "image/svg+xml",
}
ROW = {"prompt": "Which is the longest?", "responses": ["one", "two, three", "four, five, six"]}


def serve(**options) -> Iterator[str]:
    """The address of a server of a tiny judge, while it is there."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(make_app(tiny_judge(), model="tiny", **options), log_config=None))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join(60)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    yield from serve(limits=Limits(max_items=12))


@pytest.fixture(scope="module")
def locked() -> Iterator[str]:
    yield from serve(keys=ApiKeys(["secret"]))


@pytest.fixture(scope="module")
def client(address) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address) as client:
        yield client


@pytest.mark.parametrize(("path", "kind"), KINDS.items())
def test_files_are_sent_with_their_type_and_a_strict_policy(client, path, kind):
    response = client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == kind
    assert response.headers["x-content-type-options"] == "nosniff"
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}


def test_every_file_of_the_package_is_sent(client):
    sent = {client.get(path).text for path in KINDS}
    assert {file.read_text("utf-8") for file in (files("gram_fast.serving") / "page").iterdir()} == sent


def test_the_page_needs_nothing_from_elsewhere(client):
    for path in KINDS:
        text = client.get(path).text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?:|[\"'(]//|@import", text), path
    page = client.get("/").text
    assert {f"/{name}" for name in re.findall(r'(?:href|src)="([^"]*)"', page)} < set(KINDS)
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page), "the policy blocks what is inline"


def test_there_is_no_other_page(client):
    """FastAPI's own have their scripts from a network for content."""
    answers = {
        path: client.get(path) for path in (*client.get("/openapi.json").json()["paths"], "/docs", "/redoc", "/")
    }
    assert [path for path, answer in answers.items() if "html" in answer.headers.get("content-type", "")] == ["/"]


def test_scripts_make_no_html_of_texts(client):
    for path in ("/page/page.js", "/page/results.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", client.get(path).text)


def test_every_strategy_can_be_chosen(client):
    page = client.get("/").text
    assert set(re.findall(r'<option value="(\w+)"', page)) == {*STRATEGY_NAMES, "ab", "ba", "both"}
    assert {name: int(k) for name, k in re.findall(r'<option value="(\w+)" data-least="(\d+)"', page)} == {
        name: least for name, (_, least) in WITH_K.items()
    }


def test_posts_to_the_same_path_are_slimes(client):
    reward = client.post("/", json={"prompt": "p", "response": "one", "label": "two"})
    assert reward.status_code == 200
    assert 0 <= reward.json() <= 1
    assert client.get("/").text.startswith("<!doctype html>")


def test_the_page_is_open_where_keys_are_needed(locked):
    with httpx.Client(base_url=locked) as client:
        assert {client.get(path).status_code for path in KINDS} == {200}
        assert client.get("/info").status_code == 401


# In a browser

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as browser:
        browser.send("Emulation.setDeviceMetricsOverride", width=1400, height=1000, deviceScaleFactor=1, mobile=False)
        yield browser


@pytest.fixture
def browser(opened, address) -> Iterator[Browser]:
    """A browser that has the page open; its console must stay without errors."""
    opened.errors.clear()
    opened.open("about:blank")
    opened.open(address)
    opened.wait_for("document.getElementById('about').textContent !== ''")
    yield opened
    opened.run("0")
    assert opened.errors == []


def fill(browser: Browser, row=ROW) -> None:
    browser.drop(json.dumps(row), "h1")
    browser.wait_for(f"document.querySelectorAll('#candidates textarea').length === {len(row['responses'])}")


def rank(browser: Browser) -> None:
    browser.click("#rank")
    browser.wait_for("!document.getElementById('rank').disabled")


def text(browser: Browser, selector: str) -> str:
    return browser.run(f"document.querySelector({json.dumps(selector)}).innerText")


def texts(browser: Browser, selector: str) -> list[str]:
    return browser.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((found) => found.innerText)")


def values(browser: Browser, selector: str) -> list[str]:
    return browser.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((found) => found.value)")


@needs_browser
def test_what_is_typed_is_ranked(browser, client):
    browser.click("#prompt")
    browser.type(ROW["prompt"])
    browser.click("#add")
    for k, response in enumerate(ROW["responses"], start=1):
        browser.click(f"#candidate-{k}")
        browser.type(response)
    rank(browser)
    ranking = client.post("/v1/rank", json=ROW).json()
    order = ranking["order"]
    assert text(browser, "#alert") == ""
    assert text(browser, "#about").startswith("tiny ")
    assert text(browser, "#status") == f"Ranked: candidate {order[0] + 1} is the best of 3."
    assert texts(browser, ".ranking tbody td:nth-child(2)") == [str(k + 1) for k in order]
    assert texts(browser, ".ranking .text") == [ROW["responses"][k] for k in order]
    assert [float(score) for score in texts(browser, ".ranking td.score")] == pytest.approx(
        [ranking["scores"][k] for k in order], abs=6e-4
    )
    assert f"{ranking['stats']['tokens_unshared']:,} tokens" in text(browser, ".cost")

    matrix = {(c["i"], c["j"]): c["p"] for c in ranking["comparisons"]}
    matrix |= {(j, i): 1 - p for (i, j), p in matrix.items()}
    assert texts(browser, ".matrix th[scope=col]") == texts(browser, ".matrix th[scope=row]")
    assert [float(p) for p in texts(browser, ".matrix .cell")] == pytest.approx(
        [matrix[i, j] for i in order for j in order if i != j], abs=6e-3
    )


@needs_browser
def test_a_cell_tells_both_orders_of_its_pair(browser, client):
    fill(browser)
    rank(browser)
    ranking = client.post("/v1/rank", json=ROW).json()
    best, second, *_ = ranking["order"]
    found = client.post(
        "/v1/compare", json={"prompt": ROW["prompt"], "a": ROW["responses"][second], "b": ROW["responses"][best]}
    ).json()
    browser.point(".matrix tbody tr:nth-child(2) .cell")
    assert text(browser, ".detail h3") == f"Candidate {second + 1} better than candidate {best + 1}"
    shown = [float(value) for value in texts(browser, ".detail td:nth-child(2)")]
    assert shown == pytest.approx([found["p"], found["p_ab"], found["p_ba"]], abs=6e-4)
    flips = sum((c["p_ab"] > 0.5) != (c["p_ba"] > 0.5) for c in ranking["comparisons"])
    assert text(browser, ".flips").startswith(f"{flips} of 3 pairs.")
    assert len(texts(browser, ".cell.swap")) == 2 * flips


@needs_browser
def test_contradictions_of_a_made_up_answer_are_found(browser):
    wins = [(0, 1, 0.9, 0.7), (1, 2, 0.8, 0.9), (2, 0, 0.9, 0.9), (0, 3, 0.9, 0.2), (1, 3, 0.9, 0.9), (2, 3, 0.9, 0.9)]
    answer = {
        "order": [0, 1, 2, 3],
        "scores": [0.6, 0.6, 0.6, 0.1],
        "comparisons": [
            {"i": i, "j": j, "p": (ab + ba) / 2, "margin": 1, "p_ab": ab, "p_ba": ba} for i, j, ab, ba in wins
        ],
        "flagged": {},
        "errors": {},
        "stats": {"comparisons": 12, "seconds": 1.5},
    }
    asked = {"strategy": "round_robin", "orders": "both", "responses": ["a", "b", "c", "d"]}
    browser.run(f"import('/page/results.js').then(({{ show }}) => show({json.dumps(asked)}, {json.dumps(answer)}))")
    assert text(browser, ".flips") == "1 of 6 pairs. What is shown first wins 7 of 12 times."
    assert texts(browser, ".flips + ul li") == ["1 better than 4: 0.90 with 1 first, 0.20 with 4 first"]
    assert text(browser, ".circles") == "1 triple beats each other in a circle."
    assert texts(browser, ".circles + ul li") == ["1 > 2 > 3 > 1 (0.80, 0.85, 0.90)"]
    browser.click(".flips + ul button")
    assert text(browser, ".detail h3") == "Candidate 1 better than candidate 4"
    assert text(browser, ".cost p") == "12 comparisons in 1.50 s"


@needs_browser
def test_pairs_that_were_not_compared_are_empty(browser):
    fill(browser)
    browser.run("document.getElementById('strategy').value = 'reference'")
    browser.run("document.getElementById('orders').value = 'ab'")
    rank(browser)
    assert len(texts(browser, ".matrix .cell")) == 4
    assert texts(browser, ".matrix td.none .hidden") == ["not compared"] * 2
    assert sorted(texts(browser, ".detail td:nth-child(2)"))[-1] == "not run"
    fill(browser, ROW | {"responses": ["one", "two", "one"]})
    rank(browser)
    assert texts(browser, ".matrix td.none .hidden") == ["equal texts"] * 2


@needs_browser
def test_k_is_asked_for_where_the_strategy_has_one(browser):
    fill(browser, ROW | {"responses": list("abcdef")})
    assert not browser.run("document.getElementById('k').checkVisibility()")
    browser.run("document.getElementById('strategy').focus()")
    browser.press("ArrowDown")
    browser.wait_for("document.getElementById('k').checkVisibility()")
    browser.run("document.getElementById('k').value = 2")
    rank(browser)
    assert text(browser, ".cost p").startswith("12 comparisons in ")
    assert text(browser, "th.score") == "Strength, log odds"
    browser.run("document.getElementById('k').value = 1")
    browser.click("#rank")
    assert browser.run("document.getElementById('k').matches(':invalid:focus')"), "fewer than the strategy takes"


@needs_browser
def test_the_keyboard_is_enough(browser):
    browser.run("document.getElementById('prompt').focus()")
    browser.type(ROW["prompt"])
    for response in ROW["responses"][:2]:
        browser.press("Tab")
        browser.type(response)
    browser.press("Tab", "Enter")  # adds a candidate, which gets the focus
    browser.type(ROW["responses"][2])
    browser.press("Enter", modifiers=2)
    browser.wait_for("document.querySelector('.matrix') && !document.getElementById('rank').disabled")
    assert values(browser, "#candidates textarea") == ROW["responses"]
    for _ in range(12):
        browser.press("Tab")
        if browser.run("document.activeElement.matches('.cell')"):
            break
    assert browser.run("document.activeElement.matches('.cell:focus-visible')")
    label = "document.activeElement.getAttribute('aria-label')"
    first = browser.run(label)
    browser.press("ArrowRight")
    assert browser.run(label) != first
    browser.press("ArrowDown")
    assert browser.run(label).startswith(text(browser, ".detail h3"))
    browser.press("ArrowUp", "ArrowLeft")
    assert browser.run(label) == first
    browser.press("Tab")
    assert not browser.run("document.activeElement.matches('.cell')"), "the matrix is one stop of the Tab key"


@needs_browser
def test_a_candidate_is_removed_but_never_the_last_two(browser):
    fill(browser)
    browser.click("#candidates li:nth-child(2) button")
    assert values(browser, "#candidates textarea") == ROW["responses"][::2]
    assert texts(browser, "#candidates label") == ["Candidate 1", "Candidate 2"]
    assert browser.run("document.activeElement.id") == "candidate-2"
    assert browser.run("[...document.querySelectorAll('#candidates button')].every((button) => button.disabled)")


@needs_browser
def test_errors_are_shown_in_the_servers_words(browser, client):
    row = ROW | {"responses": list("abcdefghijklm")}
    fill(browser, row)
    browser.click("#rank")
    browser.wait_for("document.getElementById('alert').textContent !== ''")
    assert text(browser, "#alert") == client.post("/v1/rank", json=row).json()["error"]["message"]
    assert browser.run("document.getElementById('alert').getAttribute('role')") == "alert"
    assert len(browser.errors) == 1
    assert "400" in browser.errors.pop(), "the console itself notes the status"
    fill(browser)
    assert text(browser, "#alert") == ""


@needs_browser
def test_what_cannot_be_judged_or_is_suspicious_has_its_reason(browser):
    row = ROW | {"responses": ["one", "[INST] two", "word " * 5000]}
    fill(browser, row)
    rank(browser)
    assert sorted(texts(browser, ".ranking tbody td:nth-child(2)")) == ["1", "2"]
    assert text(browser, ".errors li").startswith("Candidate 3: ")
    assert text(browser, ".flagged li") == "Candidate 2: contains [INST]"


@needs_browser
def test_json_lines_are_dropped_pasted_and_chosen(browser, tmp_path):
    line = json.dumps(ROW)
    fill(browser)
    assert values(browser, "#prompt") == [ROW["prompt"]]
    assert values(browser, "#candidates textarea") == ROW["responses"]

    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(ROW | {'prompt': 'Another?'})}\n{line}\n\n", "utf-8")
    browser.choose(tmp_path / "rows.jsonl", "#file")
    browser.wait_for("document.getElementById('prompt').value === 'Another?'")
    assert text(browser, "#status") == "rows.jsonl: the first of 2 lines"

    (tmp_path / "one.jsonl").write_text(json.dumps(ROW | {"prompt": "A third?"}), "utf-8")
    browser.drop(tmp_path / "one.jsonl", "#candidate-1")
    browser.wait_for("document.getElementById('prompt').value === 'A third?'")
    assert text(browser, "#status") == "one.jsonl: one line"
    browser.drop(tmp_path / "rows.jsonl", "#candidate-1")
    browser.wait_for("document.getElementById('prompt').value === 'Another?'")

    paste = (
        "(() => {{ const data = new DataTransfer(); data.setData('text/plain', {}); document.querySelector({})"
        ".dispatchEvent(new ClipboardEvent('paste', {{ clipboardData: data, bubbles: true, cancelable: true }})); }})()"
    )
    browser.run(paste.format(json.dumps(line), "'#candidate-1'"))
    assert values(browser, "#prompt") == ["Another?"], "a candidate may be such a line itself"
    browser.run(paste.format("'no JSON'", "'#prompt'"))
    assert text(browser, "#alert") == "", "the browser itself pastes what is no such line"
    browser.run(paste.format(json.dumps(line), "'#prompt'"))
    assert values(browser, "#prompt") == [ROW["prompt"]]

    browser.drop('{"prompt": "p", "responses": ["alone"]}', "h1")
    browser.wait_for("document.getElementById('alert').textContent.startsWith('What was dropped: expected')")
    assert values(browser, "#prompt") == [ROW["prompt"]]


@needs_browser
def test_a_script_in_a_candidate_is_text(browser):
    scripts = ["<script>window.ran = true</script>", "<img src=x onerror='window.ran = true'>", "</td><b>bold</b>"]
    fill(browser, {"prompt": scripts[1], "responses": scripts})
    rank(browser)
    assert sorted(texts(browser, ".ranking .text")) == sorted(scripts)
    assert browser.run("window.ran === undefined && document.querySelector('#results :is(img, script, b)') === null")


@needs_browser
def test_a_key_is_asked_for_and_stored_nowhere(opened, locked):
    opened.open(locked)
    opened.wait_for("!document.getElementById('key-field').hidden")
    fill(opened)
    rank(opened)
    assert "API key" in text(opened, "#alert")
    opened.click("#key")
    opened.type("secret")
    rank(opened)
    assert text(opened, "#alert") == ""
    assert len(texts(opened, ".matrix .cell")) == 6
    assert opened.run("localStorage.length + sessionStorage.length + document.cookie.length") == 0


@needs_browser
def test_stop_ends_the_request(browser):
    fill(browser)
    browser.run(
        "window.fetch = (path, { signal }) => new Promise((_, reject) =>"
        "signal.addEventListener('abort', () => reject(signal.reason)))"
    )
    browser.click("#rank")
    assert browser.run("document.getElementById('progress').checkVisibility()")
    browser.click("#stop")
    browser.wait_for("!document.getElementById('rank').disabled")
    assert text(browser, "#status") == "Stopped."
    assert browser.run("document.activeElement.id") == "rank"


@needs_browser
@pytest.mark.parametrize("width", [360, 1400])
def test_nothing_is_wider_than_the_window(browser, width):
    fill(browser, ROW | {"responses": ["w" * 300, *"abcdefghijk"]})
    browser.run("document.getElementById('strategy').value = 'knockout'")
    rank(browser)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.send("Emulation.setDeviceMetricsOverride", **metrics)
    assert browser.run("document.documentElement.scrollWidth") <= width
    browser.send("Emulation.setDeviceMetricsOverride", **metrics | {"width": 1400})
