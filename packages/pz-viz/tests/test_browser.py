"""Pages in a real browser: nothing foreign runs, everything folds, copies, hovers and follows themes.

Needs Debian's `chromium` (`apt-get install --no-install-recommends chromium`) and the Python package
`playwright`; skipped otherwise. Screenshots go to the folder in PZ_VIZ_PICTURES, if it is set:

    PZ_VIZ_PICTURES=packages/pz-viz/pictures pytest packages/pz-viz/tests/test_browser.py
"""

import os
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import treescope
from viz_contrast import faint_texts
from viz_hostile import hostile_views
from viz_samples import Chain, Colored, Linear, Span, chain, linear

import pz_named as nx
import pz_viz
from pz_core import selectors
from pz_named.shapecheck import ArraySpec
from pz_viz._markup import shaded
from pz_viz.views import document

LIGHT, DARK = "rgb(255, 255, 255)", "rgb(20, 22, 26)"
TOKENS = ["The", " cat", " sat", " on", " the", " mat"]


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium here: apt-get install --no-install-recommends chromium")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def open_page(browser, tmp_path):
    """Opens a page from a file; at the end nothing may have been said or fetched."""
    opened = []

    def open_(html, **context_options):
        path = tmp_path / f"page_{len(opened)}.html"
        path.write_text(html, encoding="utf-8")
        context = browser.new_context(viewport={"width": 1100, "height": 800}, **context_options)
        page = context.new_page()
        said, fetched = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(path.as_uri())
        opened.append((context, said, fetched, path.as_uri()))
        return page

    yield open_
    for context, said, fetched, uri in opened:
        context.close()
        assert said == []
        assert [url for url in fetched if url != uri and not url.startswith("data:")] == []


def picture(target, name, **options):
    folder = os.environ.get("PZ_VIZ_PICTURES")
    if folder:
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        target.screenshot(path=str(pathlib.Path(folder) / f"{name}.png"), **options)


def sample_report(**options):
    rng = np.random.default_rng(0)
    weights = np.tril(rng.random((4, 2, 6, 6)) ** 3)
    weights /= weights.sum(-1, keepdims=True)
    vocabulary = [" mat", " floor", " sofa", " moon", "."]
    logits = rng.normal(size=(5, 6, 5)) + np.linspace(0, 4, 5)[:, None, None] * np.eye(5)[0]
    model = chain(12)
    edited = selectors.select(model).at_instances_of(Linear).pick_nth_selected(1)
    return pz_viz.report(
        {
            "A selection": edited,
            "Attention": pz_viz.attention_view(weights, TOKENS),
            "Logit lens": pz_viz.logit_lens_view(logits, vocabulary, tokens=TOKENS),
        },
        title="A first look",
        **options,
    )


def sample_gallery(**options):
    """Every view that `sample_report` lacks, on one page."""
    rng = np.random.default_rng(0)
    vocabulary = [*TOKENS, " dog", " ran"]
    ids = np.arange(6)
    logits = rng.normal(size=(6, 8)) + 3 * np.eye(6, 8)
    patched = logits[-1] + rng.normal(size=8)
    sweep = nx.wrap(rng.normal(size=(3, 5, 6)), "site", "block", "position")
    model = Chain([linear("a"), linear("b", size=64), Span(jnp.ones(3), 2)])
    return pz_viz.report(
        {
            "Summary": pz_viz.summary(model),
            "Difference": pz_viz.show_diff(model, Chain([linear("a", value=2.0)])),
            "Effects": pz_viz.effect_view(sweep, labels={"position": TOKENS}, title="Patching"),
            "Surprise": pz_viz.token_probabilities_view(ids, logits, vocabulary),
            "Two runs": pz_viz.comparison_view(
                logits[-1], patched, vocabulary, names=("before", "after")
            ),
            "Tokens": pz_viz.show_token_array(ids, vocabulary),
            "Scores": pz_viz.show_token_scores(ids, rng.normal(size=6), vocabulary),
        },
        title="Every other view",
        **options,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("make", [sample_report, sample_gallery])
@pytest.mark.parametrize("static", [False, True])
def test_all_text_can_be_read(open_page, make, scheme, static):
    page = open_page(make(static=static), color_scheme=scheme)
    assert faint_texts(page) == []
    if make is sample_gallery and scheme == "light" and not static:
        picture(page, "gallery_light", full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_on_every_shade_can_be_read(open_page, scheme):
    cells = [
        f"<span{shaded(kind, i / 100)}>{i}</span>" for kind in ("", "pz-hot") for i in range(101)
    ]
    page = open_page(document(" ".join(cells), title="Shades"), color_scheme=scheme)
    assert faint_texts(page) == []


@pytest.mark.parametrize("static", [False, True])
def test_nothing_of_a_hostile_page_runs(open_page, static):
    page = open_page(pz_viz.report(hostile_views(), title="Hostile", static=static))
    page.mouse.move(300, 300)
    for cell in page.locator(".pz-more").all()[::12]:
        cell.hover(force=True)
    page.keyboard.press("Tab")
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[onerror]").count() == 0


def test_nothing_of_a_hostile_notebook_runs(open_page):
    outputs = [
        content._repr_html_()
        if hasattr(content, "_repr_html_")
        else treescope.render_to_html(content)
        for content in hostile_views().values()
        if not isinstance(content, str)
    ]
    page = open_page(f"<!DOCTYPE html><html><body>{''.join(outputs)}</body></html>")
    page.wait_for_timeout(500)  # frames load, and treescope unpacks what comes into view
    assert len(page.frames) > 5
    for frame in page.frames:
        frame.wait_for_load_state()
        assert frame.evaluate("window.hacked") is None
    assert page.locator("img[onerror]").count() == 0


def test_nodes_fold_by_pointer_and_by_keyboard(open_page):
    page = open_page(pz_viz.to_html(Span(Span([1, 2], "x" * 70), 3)))
    tree = page.locator(".treescope_root")
    first = page.locator(".foldable_node_toggle").first
    assert first.is_checked()
    opened = tree.bounding_box()["height"]
    page.locator(".foldable_node > label").first.click()
    assert not first.is_checked()
    assert tree.bounding_box()["height"] < opened
    page.keyboard.press("Tab")
    first.focus()
    page.keyboard.press("Space")
    assert first.is_checked()
    page.keyboard.press("ArrowLeft")
    assert not first.is_checked()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.matches('.foldable_node_toggle')")
    assert not page.evaluate(
        "document.activeElement === document.querySelector('.foldable_node_toggle')"
    )


def test_the_tab_key_reaches_open_nodes_only(open_page):
    page = open_page(pz_viz.to_html(Span(Span([1, 2], "x" * 70), 3)))
    page.locator(".foldable_node_toggle").first.focus()
    page.keyboard.press("Space")  # closes the root: nothing inside may take the focus
    page.keyboard.press("Tab")
    assert not page.evaluate("document.activeElement.matches('.foldable_node_toggle')")


def test_a_path_is_copied(open_page):
    page = open_page(
        pz_viz.to_html(Span([Span(1, "x" * 80)], 3)),
        permissions=["clipboard-read", "clipboard-write"],
    )
    button = page.locator(".copybutton[data-copy='.lo[0]']").first
    button.click()
    page.wait_for_selector(".pz-copied")
    assert page.evaluate("navigator.clipboard.readText()") == ".lo[0]"


def test_r_shows_full_names(open_page):
    page = open_page(pz_viz.to_html(Span(1, 2)))
    assert "viz_samples.Span" not in page.inner_text("body")
    page.locator(".treescope_root").focus()
    page.keyboard.press("r")
    assert "viz_samples.Span" in page.inner_text("body")
    page.keyboard.press("r")
    assert "viz_samples.Span" not in page.inner_text("body")


def test_a_heatmap_is_read_by_pointer_keyboard_and_slider(open_page):
    page = open_page(sample_report())
    canvas, readout = page.locator("canvas"), page.locator(".pz-readout")
    canvas.hover(position={"x": 5, "y": 5})
    assert readout.inner_text() == "layer 0, head 0, query 0 “The”, key 0 “The”: 1"
    canvas.focus()
    page.keyboard.press("ArrowDown")
    assert "query 1 “␣cat”, key 0 “The”" in readout.inner_text()
    page.locator("input[type=range]").first.focus()
    page.keyboard.press("ArrowRight")
    assert readout.inner_text().startswith("layer 1, head 0, query 1")


def test_a_heatmap_shows_the_value_of_the_cell(open_page):
    values = np.arange(12.0).reshape(3, 4)
    page = open_page(pz_viz.to_html(pz_viz.effect_view(values)))
    page.locator("canvas").focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    assert page.locator(".pz-readout").inner_text() == "axis0 1, axis1 2: 6"


def test_cells_show_their_alternatives_on_hover_and_focus(open_page):
    page = open_page(sample_report())
    cell = page.locator(".pz-lens .pz-more").nth(8)
    assert not cell.locator(".pz-tip").is_visible()
    cell.hover()
    assert "entropy" in cell.locator(".pz-tip").inner_text()
    page.mouse.move(0, 0)
    page.locator(".pz-lens .pz-more").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    shown = page.locator(".pz-lens .pz-more").nth(7).locator(".pz-tip")
    assert shown.is_visible()
    box = shown.bounding_box()
    assert 0 <= box["x"]
    assert box["x"] + box["width"] <= 1100
    assert 0 <= box["y"]
    assert box["y"] + box["height"] <= 800


def brightness(page, selector):
    color = page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).backgroundColor")
    return sum(map(float, color[color.index("(") + 1 : -1].split(",")[:3]))


@pytest.mark.parametrize("scheme, dark", [("light", False), ("dark", True)])
def test_the_page_follows_the_readers_theme(open_page, scheme, dark):
    page = open_page(sample_report(), color_scheme=scheme)
    assert (brightness(page, "body") < 200) is dark
    picture(page, f"report_{scheme}")
    other = open_page(sample_report(theme="dark"), color_scheme=scheme)
    assert brightness(other, "body") < 200


def test_a_static_page_folds_without_any_script(open_page):
    page = open_page(sample_report(static=True), java_script_enabled=False)
    toggle = page.locator(".foldable_node_toggle").first
    assert toggle.is_checked()
    page.locator(".foldable_node > label").first.click()
    assert not toggle.is_checked()
    assert page.locator(".pz-stills img").count() == 8
    cell = page.locator(".pz-lens .pz-more").first
    cell.hover()
    assert cell.locator(".pz-tip").is_visible()


STRICT = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_a_static_page_works_under_a_strict_content_policy(browser):
    context, said = browser.new_context(), []
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text))
    served = {"body": sample_report(static=True), "content_type": "text/html; charset=utf-8"}
    headers = {"Content-Security-Policy": STRICT}
    page.route("**", lambda route: route.fulfill(**served, headers=headers))
    page.goto("https://pages.test/report")
    toggle = page.locator(".foldable_node_toggle").first
    page.locator(".foldable_node > label").first.click()
    assert not toggle.is_checked()
    page.locator(".pz-lens .pz-more").first.hover()
    assert page.locator(".pz-lens .pz-more").first.locator(".pz-tip").is_visible()
    assert page.locator(".pz-stills img").first.evaluate("image => image.naturalWidth") > 0
    context.close()
    assert said == []


def test_a_view_in_a_notebooks_frame(open_page):
    view = pz_viz.effect_view(np.eye(3), title="Framed")
    page = open_page(f"<!DOCTYPE html><html><body>{view._repr_html_()}</body></html>")
    frame = page.frame_locator("iframe")
    frame.locator("canvas").focus()
    assert "axis0 0, axis1 0: 1" in frame.locator(".pz-readout").inner_text()


def test_a_difference_and_a_summary_read_well(open_page):
    before = Chain([Span(1, jnp.zeros(3)), Span(3, 4), Span(5, 6)])
    after = Chain([Span(1, jnp.ones(3)), Span(3, 4, "km"), linear("new")])
    page = open_page(
        pz_viz.report(
            {"Edit": pz_viz.show_diff(before, after), "Size": pz_viz.summary(after)}, title="Edit"
        )
    )
    assert page.get_by_text("# unit changed from").is_visible()
    assert page.get_by_text("largest absolute difference 1").is_visible()
    assert page.locator("tfoot").is_visible()


def test_treescopes_own_display_folds_by_keyboard(open_page):
    html = treescope.render_to_html(Span(Span([1, 2], "x" * 70), 3), compressed=False)
    page = open_page(f"<!DOCTYPE html><html><body>{html}</body></html>")
    first = page.locator(".foldable_node_toggle").first
    first.focus()
    assert first.is_checked()
    page.keyboard.press("Space")
    assert not first.is_checked()


def notebook_page(value, **body):
    """A page that holds one of treescope's own displays, as a notebook does."""
    attributes = "".join(f' {name}="{text}"' for name, text in body.items())
    html = treescope.render_to_html(value, compressed=False)
    return f"<!DOCTYPE html><html><body{attributes}>{html}</body></html>"


IN_THE_FRAME = "document.querySelector('treescope-container').shadowRoot"


@pytest.fixture
def open_notebook(open_page):
    """Opens such a page and waits until treescope's scripts have filled the frame in."""

    def open_(value, scheme, **body):
        page = open_page(notebook_page(value, **body), color_scheme=scheme)
        page.wait_for_function(
            "document.querySelector('treescope-container')?.shadowRoot?.querySelector('.treescope_root')"
        )
        return page

    return open_


def ground_of_the_frame(page):
    style = f"getComputedStyle({IN_THE_FRAME}.querySelector('.treescope_root'))"
    return page.evaluate(f"{style}.backgroundColor")


@pytest.mark.parametrize("scheme, ground", [("light", LIGHT), ("dark", DARK)])
def test_trees_in_a_notebook_follow_the_readers_theme(open_notebook, scheme, ground):
    faint = [Colored("rgb(0 100 0 / 0.2)"), Colored(("teal", "oklch(0.785 0.103 188.7 / 0.25)"))]
    model = {"layers": chain(2), "odd": [None, 1.5, Span("text", dict), ArraySpec], "faint": faint}
    page = open_notebook(model, scheme)
    assert ground_of_the_frame(page) == ground
    assert faint_texts(page, IN_THE_FRAME) == []


@pytest.mark.parametrize(
    "value", [[1, 2], jnp.ones(3), nx.wrap(jnp.ones(3)).tag("a"), linear("w").weights]
)
def test_anything_that_treescope_shows_follows_the_readers_theme(open_notebook, value):
    assert ground_of_the_frame(open_notebook(value, "dark")) == DARK


@pytest.mark.parametrize(
    "scheme, told, ground",
    [
        ("light", {"data-jp-theme-light": "false"}, DARK),
        ("dark", {"data-jp-theme-light": "true"}, LIGHT),
        ("dark", {"class": "vscode-light"}, LIGHT),
    ],
)
def test_a_notebooks_own_theme_wins(open_notebook, scheme, told, ground):
    assert ground_of_the_frame(open_notebook(Span(1, 2), scheme, **told)) == ground


def test_a_selection_in_a_dark_notebook(open_notebook):
    selection = selectors.select(chain(12)).at_instances_of(Linear).pick_nth_selected(1)
    page = open_notebook(selection, "dark")
    assert page.get_by_text("# Selected:").is_visible()
    assert faint_texts(page, IN_THE_FRAME) == []
    picture(page.locator("treescope-container"), "notebook_dark")


def test_pictures_of_arrays_keep_their_white_ground(open_notebook):
    with treescope.active_autovisualizer.set_scoped(treescope.ArrayAutovisualizer()):
        page = open_notebook(Span(jnp.eye(4), 1), "dark")
    page.wait_for_function(f"{IN_THE_FRAME}.querySelector('.arrayviz_container canvas')")
    style = f"getComputedStyle({IN_THE_FRAME}.querySelector('.arrayviz_container'))"
    assert page.evaluate(f"{style}.backgroundColor") == LIGHT


def test_array_pictures_are_drawn(open_page):
    page = open_page(pz_viz.to_html(treescope.render_array(jnp.eye(4))))
    page.wait_for_function(
        "document.querySelector('treescope-container')?.shadowRoot?.querySelector('canvas')"
    )


def test_a_selection_is_drawn_in_its_tree(open_page):
    model = Chain([Span(1, 2), Span(3, 4)])
    page = open_page(pz_viz.to_html(selectors.select(model).at(lambda m: m.sublayers[1])))
    assert page.get_by_text("# Selected:").is_visible()
