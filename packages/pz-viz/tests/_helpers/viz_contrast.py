"""How well text can be read on a page: WCAG's contrast of every piece of text that shows."""

LOWEST = 4.5
"""https://www.w3.org/TR/WCAG22/#contrast-minimum for text of normal size."""

# Colours are painted on one pixel and read back, so that any CSS colour counts as what it shows.
_FAINT_TEXTS = """
(root) => {
  const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const paint = (color, alpha = 1) => {
    context.globalAlpha = alpha; context.fillStyle = color; context.fillRect(0, 0, 1, 1);
  };
  const luminance = () => {
    const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map((byte) => {
      const x = byte / 255;
      return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const parentOf = (element) => element.parentElement ?? element.getRootNode().host ?? null;
  const contrast = (element) => {
    const around = [];
    for (let at = element; at; at = parentOf(at)) around.unshift(getComputedStyle(at));
    paint("white");
    let opacity = 1;
    for (const style of around) {
      opacity *= Number(style.opacity);
      paint(style.backgroundColor);
      const fill = /^linear-gradient\\((.*)\\)$/.exec(style.backgroundImage)?.[1];
      if (fill) paint(fill.slice(0, (fill.length - 2) / 2));  // treescope's fills: one colour twice
    }
    const ground = luminance();
    paint(around.at(-1).color, opacity);
    const ink = luminance();
    return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
  };
  const faint = [], texts = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  let count = 0;
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element?.checkVisibility()) continue;
    count += 1;
    const ratio = contrast(element);
    if (ratio < LOWEST) faint.push([texts.currentNode.data.trim().slice(0, 40), element.className, ratio]);
  }
  return { count, faint };
}
""".replace("LOWEST", str(LOWEST))


def faint_texts(page, root="document.body"):
    """Texts below a node whose contrast is too low, as [text, class, contrast]."""
    found = page.evaluate(f"({_FAINT_TEXTS})({root})")
    assert found["count"] > 0
    return found["faint"]
