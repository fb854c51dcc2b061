// Formulas: pymdownx.arithmatex leaves \(...\) in a line and \[...\] on its own, which KaTeX draws.
for (const element of document.querySelectorAll(".arithmatex")) {
  const source = element.textContent.trim();
  katex.render(source.slice(2, -2), element, { displayMode: source.startsWith("\\["), throwOnError: false });
}
