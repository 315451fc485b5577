"""What README and CONTRIBUTING claim: examples run, links lead somewhere, commands exist."""

import pathlib
import re
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "docs/howto.md"]
HATCH = tomllib.loads((ROOT / "hatch.toml").read_text("utf-8"))["envs"]


def _text(page):
    return (ROOT / page).read_text("utf-8")


def test_the_readmes_example_runs(capsys):
    [example] = re.findall(r"```python\n(.*?)```", _text("README.md"), re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "{'batch': 2, 'classes': 3}" in printed
    assert "Identity()" in printed


def missing_links(text, folder):
    """Relative links in Markdown or HTML that lead to no file."""
    targets = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    local = [target for target in targets if not target.startswith("http")]
    return [target for target in local if not (folder / target).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert missing_links(_text(page), (ROOT / page).parent) == []


def test_a_dead_link_would_be_noticed():
    text = '[a](README.md) [b](gone.md) [c](https://example.org) <img src="gone.png">'
    assert missing_links(text, ROOT) == ["gone.md", "gone.png"]


def unknown_commands(text):
    """Commands `./hatchw run [env:]script` whose script is not in hatch.toml."""
    unknown = []
    for command in re.findall(r"\./hatchw run ([\w.:-]+)", text):
        environment, _, script = command.rpartition(":")
        family = re.sub(r"^(iso|oldest)\..*", r"\1", environment) or "default"
        if script not in HATCH.get(family, {}).get("scripts", {}):
            unknown.append(command)
    return unknown


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page):
    assert unknown_commands(_text(page)) == []


def test_an_unknown_command_would_be_noticed():
    assert unknown_commands("./hatchw run demo; ./hatchw run types:chekc") == ["types:chekc"]


def test_the_table_of_wheels_is_what_the_wheels_declare():
    rows = re.findall(r"^\| \[`(pz-\w+)`\].*\| `(pz_\w+)` \| ([^|]*) \|$", _text("README.md"), re.M)
    assert len(rows) == len(list((ROOT / "packages").iterdir()))
    for name, import_name, stated in rows:
        pyproject = tomllib.loads(_text(f"packages/{name}/pyproject.toml"))
        requirements = pyproject["project"]["dependencies"]
        needed = {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}
        assert set(re.findall(r"[\w-]+", stated)) == needed - {"jax", "numpy"}, name
        assert (ROOT / "packages" / name / "src" / import_name).is_dir()
