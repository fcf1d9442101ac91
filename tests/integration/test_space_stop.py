"""Stopping a text in a browser, in a Space of its own: nobody else asks it for anything."""

from test_space import browser, page, space  # noqa: F401  fixtures


def test_a_text_is_stopped_edited_and_gone_on_with(space, page):  # noqa: F811
    page.goto(space)
    page.get_by_text("Options").click()
    # A text without sense does not come to its end before it is stopped.
    page.get_by_label("number input for Temperature").fill("2")
    page.locator("#most input[type=number]").fill("30")
    page.locator("#prompt textarea").press("Control+Enter")
    page.wait_for_function("document.querySelector('#written textarea').value.length > 30")
    page.keyboard.press("Escape")
    page.wait_for_function("document.querySelector('.figures caption').textContent === 'Stopped.'")
    page.wait_for_timeout(1000)
    written = page.locator("#written textarea")
    text = written.input_value()
    page.wait_for_timeout(1000)
    assert written.input_value() == text
    edited = "Tom had a cat. The cat was"
    written.fill(edited)
    page.get_by_role("button", name="Go on from the edited text").click()
    page.wait_for_function(f"document.querySelector('#beside textarea').value.startsWith('{edited} ')")
    assert written.input_value().startswith(edited)
