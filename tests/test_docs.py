"""Every code block in docs runs or is read by the real command line; links lead somewhere; the site builds."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nbclient
import nbformat
import pages
import pytest
from pages import DOCS, PAGES, ROOT

import lineas
from lineas.cli import VERBS
from lineas.intervention import artifact
from lineas.prompts import read_prompts
from lineas.vllm_plugin.requests import parse, split_model

NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
PROGRAMS = [name for name in NAMES if name.startswith("docs/") and pages.blocks(ROOT / name, "python")]
EXECUTED = ["docs/guides/compose.md", "docs/guides/gates.md", "docs/guides/fold.md"]
"""Pages whose commands are run, one after the other, where they need no more than lineas brings along."""
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


class Hub:
    """Stands for the hub of Hugging Face: it notes what is uploaded."""

    uploaded: dict[str, list[str]] = {}  # noqa: RUF012

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> str:
        return f"https://hub/{repo_id}"

    def upload_folder(self, repo_id: str, folder_path: str) -> None:
        self.uploaded[repo_id] = sorted(file.name for file in Path(folder_path).iterdir())


class Server:
    """Stands for the client of an OpenAI-compatible server: it notes the requests."""

    requests: list[dict[str, Any]] = []  # noqa: RUF012

    def __init__(self, base_url: str, api_key: str) -> None:
        self.completions = SimpleNamespace(create=lambda **request: self.requests.append(request))


@pytest.fixture
def loaded_once(smollm2: lineas.TextModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, where the default model is the one that is loaded already, and nothing is outside."""
    from lineas.cli import common

    real = lineas.load

    def load(name: Any = None, dtype: str = "auto", **options: Any) -> Any:
        default = name in (None, smollm2.name) and dtype == "auto" and not options
        return smollm2 if default else real(name, dtype, **options)

    monkeypatch.setattr(lineas, "load", load)
    monkeypatch.setattr(common, "load", load)
    monkeypatch.setattr(artifact, "HfApi", Hub)
    monkeypatch.setitem(sys.modules, "openai", SimpleNamespace(OpenAI=Server))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.filterwarnings("ignore:.* scales are lost to bfloat16")
def test_python_blocks_run_in_their_order(
    name: str, loaded_once: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    names: dict[str, Any] = {"__name__": "__page__"}
    for block in pages.blocks(ROOT / name, "python"):
        code = "\n" * (block.line - 1) + block.code
        exec(compile(code, name, "exec", dont_inherit=True), names)
    said = capsys.readouterr().out
    check = CHECKS.get(name)
    if check:
        check(names, said)


def _first(names: dict[str, Any], said: str) -> None:
    facts = names["calm"].facts
    assert facts["cost_after"] < facts["cost"][0]
    assert names["calm"].maps.keys() == {f"model.layers.{i}.post_attention_layernorm" for i in range(10, 30)}


def _concepts(names: dict[str, Any], said: str) -> None:
    assert "3.5000, 6.0000" in said
    assert "tensor(0.1000)" in said
    assert names["by_hand"].support() == 1 / 576


def _learn(names: dict[str, Any], said: str) -> None:
    assert len(names["formal"].maps) == 20
    assert len(names["all_layers"].maps) == 30
    assert names["losses"][-1] < names["losses"][0]


def _steer(names: dict[str, Any], said: str) -> None:
    assert names["untouched"] != names["steered"]
    again = names["model"].generate(["You always"] * 2, max_new_tokens=8, temperature=0)
    assert again == [names["untouched"]] * 2  # also: no block has left its steering behind


def _evaluate(names: dict[str, Any], said: str) -> None:
    assert "| polite | 0.5 |" in said
    assert 0 < names["best"].strength <= 1
    assert "polite" in Path("report.html").read_text(encoding="utf-8")


def _small(names: dict[str, Any], said: str) -> None:
    assert 0 < names["small"].support() < 1
    assert Path("swept", "sweep.json").exists()


def _compose(names: dict[str, Any], said: str) -> None:
    first, last, both = names["polite"], names["formal"].at(0.7), names["both"]
    site = next(iter(first.maps.keys() & last.maps.keys()))
    z = first.maps[site].scale
    assert both.maps[site](z).allclose(last.maps[site](first.maps[site](z)))
    assert names["back"].support() == 0


def _gates(names: dict[str, Any], said: str) -> None:
    assert names["gated"].gates
    assert not names["plain"].gates


def _images(names: dict[str, Any], said: str) -> None:
    assert names["picture"].size == names["pictures"][0].size == (64, 64)
    assert Path("heart.png").exists()


def _fold(names: dict[str, Any], said: str) -> None:
    assert Path("model-polite", "lineas.json").exists()
    assert "'model.layers.15'" in said


def _serve(names: dict[str, Any], said: str) -> None:
    """The plugin understands what the clients of the page send."""
    by_argument, by_name = Server.requests
    wanted = {"calm": 0.7, "brief": 0.3}
    assert parse(by_argument["extra_body"]["vllm_xargs"]["lineas"], wanted) == wanted
    base, steering = split_model(by_name["model"], ["MODEL"]) or ("", "")
    assert (base, parse(steering, wanted)) == ("MODEL", wanted)


def _own_method(names: dict[str, Any], said: str) -> None:
    assert names["own"].facts["method"] == {"name": "Medians"}
    assert names["own"].support() > 0.5
    assert lineas.Intervention.load("from-elsewhere").maps["model.layers.15"].shift.equal(names["vector"])


def _publish(names: dict[str, Any], said: str) -> None:
    assert Hub.uploaded["someone/calm-smollm2"] == ["README.md", "intervention.json", "intervention.safetensors"]
    assert "48.3" in Path("calm-measured", "README.md").read_text(encoding="utf-8")


CHECKS = {
    "docs/start/first.md": _first,
    "docs/start/concepts.md": _concepts,
    "docs/guides/learn.md": _learn,
    "docs/guides/steer.md": _steer,
    "docs/guides/evaluate.md": _evaluate,
    "docs/guides/small.md": _small,
    "docs/guides/compose.md": _compose,
    "docs/guides/gates.md": _gates,
    "docs/guides/images.md": _images,
    "docs/guides/fold.md": _fold,
    "docs/guides/serve.md": _serve,
    "docs/guides/own-method.md": _own_method,
    "docs/guides/publish.md": _publish,
}


@pytest.mark.parametrize("name", [name for name in NAMES if pages.blocks(ROOT / name, "bash")])
def test_commands_are_those_of_the_command_line(name: str) -> None:
    for block in pages.blocks(ROOT / name, "bash"):
        for arguments in pages.commands(block):
            try:
                pages.read(arguments)
            except Exception as error:
                reason = error.format_message() if hasattr(error, "format_message") else repr(error)  # pyright: ignore
                pytest.fail(f"{name}:{block.line}: lineas {' '.join(arguments)}: {reason}")
            for word in arguments:
                if word.startswith("lineas:"):
                    assert read_prompts(word)


def test_a_command_that_does_not_exist_is_found() -> None:
    """The test above sees a wrong option, a wrong verb and a wrong number."""
    for wrong in (["fold", "--strenght", "1"], ["folded"], ["generate", "--intervention", "a", "--strength", "much"]):
        with pytest.raises(Exception, match=r"No such|strength|[Nn]o such"):
            pages.read(wrong)


@pytest.mark.parametrize("name", EXECUTED)
def test_commands_of_a_page_run_one_after_the_other(name: str, loaded_once: Path) -> None:
    ran = []
    for block in pages.blocks(ROOT / name, "bash"):
        for arguments in pages.commands(block):
            assert pages.run(arguments) == 0, f"{name}:{block.line}: lineas {' '.join(arguments)}"
            ran.append(arguments[arguments.index("--out") + 1] if "--out" in arguments else None)
    written = [Path(out) for out in ran if out]
    assert written
    assert all(out.exists() for out in written)


def test_the_commands_on_the_small_image_model_run(loaded_once: Path) -> None:
    block = pages.blocks(DOCS / "guides" / "images.md", "bash")[0]
    for arguments in pages.commands(block):
        assert pages.run(arguments) == 0, arguments
    assert {"strip.png", "strip.gif"} <= {file.name for file in Path("painted").iterdir()}
    rows = json.loads(Path("found", "evaluation.json").read_text())["rows"]
    assert [row["strength"] for row in rows] == [0, 0.5, 1]
    assert Path("shapes-night", "model_index.json").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_block_says_what_it_is(name: str) -> None:
    """A block that no test runs or reads is marked as output."""
    assert {block.language for block in pages.blocks(ROOT / name)} <= {"python", "bash", "text"}


# ---- prose


@pytest.mark.parametrize("name", [*NAMES, "CHANGELOG.md"])
def test_links_lead_to_files_and_headings(name: str) -> None:
    page = ROOT / name
    prose = pages.BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target, anchor in re.findall(r"\]\((?![a-z]+:)([^)#\s]*)(#[^)\s]*)?\)", prose):
        file = (page.parent / target).resolve() if target else page
        generated = DOCS / "contributing.md", DOCS / "changelog.md"
        assert file.exists() or file in generated, f"{name} links to {target}"
        if anchor and file.suffix == ".md":
            assert anchor.removeprefix("#") in _anchors(file), f"{name} links to {target}{anchor}"


def _anchors(file: Path) -> set[str]:
    """The anchors of a page's headings, as both GitHub and the site make them."""
    titles = re.findall(r"^#+ (.+)$", pages.BLOCK.sub("", file.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("docs/") or name == "README.md"])
def test_no_sentence_has_two_semicolons(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    figures = re.compile(r"<!-- (\w+) -->.*?<!-- /\1 -->", re.DOTALL)
    prose = re.sub(r"^\|.*$", "", pages.BLOCK.sub("", figures.sub("", text)), flags=re.MULTILINE)
    sentences = re.split(r"(?<=[.:?!])\s|\n\s*\n|\n- ", re.sub(r"`[^`]*`", "", prose))
    assert [sentence for sentence in sentences if sentence.count(";") > 1] == []


# ---- the site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    built = list(site.rglob("*.html"))
    assert len(built) > 40
    for page in built:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"([^\"]*)", text)
        loaded += re.findall(r"<link[^>]*rel=\"(?:stylesheet|preconnect|icon)\"[^>]*href=\"([^\"]*)", text)
        assert [one for one in loaded if re.match(r"(https?:)?//", one)] == [], page.name
    styles = "".join(file.read_text(encoding="utf-8") for file in site.rglob("*.css"))
    assert re.findall(r"url\(\"?(https?:)?//", styles) == []


def test_every_public_name_has_an_entry(site: Path) -> None:
    html = "".join(page.read_text(encoding="utf-8") for page in (site / "reference" / "api").glob("*.html"))
    hooks = _hooks()
    assert hooks.missing(html) == []
    without = html.replace('id="lineas.LinEAS"', "").replace('id="lineas.folding.fold.fold"', "")
    assert hooks.missing(without) == [
        f"lineas.{name} is public and has no entry in docs/reference/api" for name in ("LinEAS", "fold")
    ]


def test_the_page_of_the_command_line_has_every_verb_and_option(site: Path) -> None:
    page = (site / "reference" / "command-line.html").read_text(encoding="utf-8")
    assert re.findall(r"<h2 id=\"lineas-([\w-]+)\"", page) == list(VERBS)
    options = set(re.findall(r"<code>(--[\w-]+)</code>", page))
    assert {"--sure", "--precision", "--positive", "--draws", "--where", "--measures", "--examples"} <= options
    assert "--force" in page
    assert ">required<" in page


def test_the_search_knows_the_pages(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    places = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert {"guides/fold.html", "reference/api/learn.html", "notebooks/text.html", "contributing.html"} <= places


def _hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "site_hooks.py")
    assert spec
    assert spec.loader
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    return hooks


# ---- notebooks


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs_from_top_to_bottom(
    notebook: Path, tmp_path: Path, smollm2: lineas.TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default model is in the cache by then; a cell may take two minutes."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    content: Any = nbformat.read(notebook, as_version=4)
    stored = [cell.outputs for cell in content.cells if cell.cell_type == "code"]
    client = nbclient.NotebookClient(
        content, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    made = [cell.outputs for cell in content.cells if cell.cell_type == "code"]
    assert [bool(one) for one in made] == [bool(one) for one in stored]
    assert any(stored)
    assert notebook.stat().st_size < 300_000
