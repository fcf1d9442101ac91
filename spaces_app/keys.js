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
  const press = (id) => document.getElementById(id)?.click();
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") press("stop");
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    const box = Object.keys(buttons).find((id) => event.target.closest(`#${id}`));
    if (box === undefined) return;
    event.preventDefault();
    press(buttons[box]);
  });
}
