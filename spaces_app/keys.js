// Ctrl+Enter (on a Mac, Command+Enter) presses the button that goes with the text in which it is typed; Escape stops.
() => {
  const buttons = {
    prompt: "start",
    written: "go-on",
    text: "look-inside",
    sentences: "write-back",
    from: "between",
    to: "between",
  };
  // Gradio shows the parts of the page as their scripts come: the text may be there before its button.
  const press = (id) => {
    const button = document.getElementById(id);
    if (button) button.click();
    else setTimeout(press, 50, id);
  };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") document.getElementById("stop")?.click();
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    const box = Object.keys(buttons).find((id) => event.target.closest(`#${id}`));
    if (box === undefined) return;
    event.preventDefault();
    press(buttons[box]);
  });
}
