"""What makes a page valid and self-contained, beyond what a parser alone can tell."""

import collections
import re

PHRASING_ONLY = {"a", "b", "bdi", "caption", "h1", "h2", "h3", "i", "kbd", "label", "p", "span"}
BLOCKS = {"div", "dl", "figure", "h1", "h2", "h3", "main", "nav", "ol", "p", "pre", "section"}
BLOCKS |= {"table", "ul"}
LOADING = {"src", "srcset", "href", "data", "action", "formaction", "poster", "background"}


def problems(page):
    """Everything that is wrong with a page, in words; a parse error raises.

    One departure from the standard is treescope's own: inside of its trees a `div` may stand in
    a `span`. Browsers nest them as they are written.
    """
    import html5lib

    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    root = parser.parse(page)
    found = [*_head_problems(root, page)]
    ids = collections.Counter(e.get("id") for e in root.iter() if e.get("id") is not None)
    found += [f"id {name!r} appears {count} times" for name, count in ids.items() if count > 1]
    for element in root.iter():
        found += _element_problems(element, ids)
    found += _nesting_problems(root.find("body"), ())
    return found


def _head_problems(root, page):
    if not root.get("lang"):
        yield "html has no language"
    charsets = [meta.get("charset") for meta in root.iter("meta") if meta.get("charset")]
    if charsets != ["utf-8"] or "charset" not in page[:1024]:
        yield f"charset declared as {charsets}, or too late"
    titles = list(root.iter("title"))
    if len(titles) != 1 or not (titles[0].text or "").strip():
        yield f"{len(titles)} titles, or an empty one"
    if next(root.find("body").iter("style"), None) is not None:
        yield "a style element in the body"


def _element_problems(element, ids):
    if not isinstance(element.tag, str):  # a comment
        return
    for name, value in element.attrib.items():
        if name.startswith("on"):
            yield f"{element.tag} has a handler {name}"
        if name in LOADING and not value.startswith(("#", "data:image/")):
            yield f"{element.tag} {name}={value[:40]!r} loads something"
        if name == "href" and value.startswith("#") and value[1:] not in ids:
            yield f"a link leads to {value}, which is not there"
        if name == "style" and re.search(r"url\((?!['\"]?data:)", value):
            yield f"{element.tag} loads a style's url"
    if element.tag == "img" and not element.get("alt"):
        yield "an image without words"
    if element.tag == "style" and re.search(r"@import|url\((?!['\"]?data:)", element.text or ""):
        yield "a style sheet loads something"


def _nesting_problems(element, around):
    if "pz-tree" in (element.get("class") or "").split():
        return
    outer = PHRASING_ONLY.intersection(around)
    if element.tag in BLOCKS and outer:
        yield f"{element.tag} in {sorted(outer)}"
    for child in element:
        if isinstance(child.tag, str):
            yield from _nesting_problems(child, (*around, element.tag))
