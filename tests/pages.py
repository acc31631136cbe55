"""Pages of runs, opened in a browser and read."""


def opened(browser, path, width=1400, scheme="light"):
    """The page drawn, what its console said, and what it asked of the network."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.messages, page.asked = [], []
    page.on("console", lambda message: page.messages.append(message.text))
    page.on("pageerror", lambda error: page.messages.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-drawn]", state="attached")
    return page


def words(page):
    """The text of the page as it is read, spaces joined."""
    return " ".join(page.inner_text("body").replace("\N{NO-BREAK SPACE}", " ").split())


def must_be_quiet(page, path):
    assert page.messages == []
    assert page.asked == [path.as_uri()]
