// Formulas: pymdownx.arithmatex leaves \(...\) in a line and \[...\] on its own, which KaTeX draws. A formula with a
// mistake stays as it was typed; KaTeX by itself would print the unknown command in red and report nothing.
for (const element of document.querySelectorAll(".arithmatex")) {
  const source = element.textContent.trim();
  try {
    katex.render(source.slice(2, -2), element, { displayMode: source.startsWith("\\["), throwOnError: true });
  } catch (error) {
    element.classList.add("katex-error");
    console.error(error.message);
  }
}
